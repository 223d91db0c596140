"""What a first picture costs in a fresh process: time and memory; and what importing alone does."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.launch import Ran, launch
from diffusion_rt.bench.parity import Gate
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import ALL, OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.runtime.samplers import SAMPLERS

PEER = "diffusers"
SCRIPT = Path(__file__).with_name("draw_with_diffusers.py")
PYTHON = (sys.executable, "-P")  # nothing that lies beside a script may hide a package

# What is loaded before anything is drawn, contender by contender; then the time of day is said.
SAY_TIME = "import time; print(time.time())"
IMPORTS = {
    OURS: "from diffusion_rt import Pipeline, Request",
    PEER: "from diffusers import StableDiffusionXLPipeline",
    "python": "pass",  # the interpreter itself, which all of them pay
}


@dataclass(slots=True)
class Runs:
    """One contender's processes, all of the same command."""

    command: list[str]
    seconds: list[float] = field(default_factory=list)
    to_file: list[float] = field(default_factory=list)  # until its picture lay on the disk
    peak_rss: list[float] = field(default_factory=list)


def commands(
    case: Case, *, model: Path, threads: int, pictures: Path, sampler: bool = False
) -> dict[str, list[str]]:
    """How each contender is told to draw the case's one picture to `pictures/CONTENDER.png`.

    The sampler is the model's own unless `sampler` has it named. Raises BadInput where diffusers
    has none of it.
    """
    scheduler = SAMPLERS[case.sampler].scheduler
    if sampler and scheduler is None:
        raise BadInput(f"sampler {case.sampler}: diffusers has none of it; leave it out")
    common = [
        *("--model", str(model), "--width", str(case.width), "--height", str(case.height)),
        *("--steps", str(case.steps), "--guidance-scale", str(case.guidance_scale)),
        *("--seed", str(case.seed), "--threads", str(threads)),
    ]
    ours = ["-m", "diffusion_rt", "generate", "--overwrite"]
    theirs = [str(SCRIPT)]
    if sampler:
        ours += ["--sampler", case.sampler]
        theirs += ["--scheduler", str(scheduler)]
    return {
        name: [
            *(*PYTHON, *program, *common, "--output", str(pictures / f"{name}.png")),
            *("--", case.prompt),
        ]
        for name, program in ((OURS, ours), (PEER, theirs))
    }


def first_pictures(
    told: dict[str, list[str]], *, pictures: Path, repeats: int, tell: Tell
) -> tuple[dict[str, Runs], str | None]:
    """The processes of each command, in turn, and what is wrong with our picture if anything.

    The first of each is not timed: it brings the files into the system's cache, and its picture is
    held against that of diffusers.
    """
    runs = {name: Runs(command) for name, command in told.items()}
    for turn in range(1 + repeats):
        tell(f"first picture: run {turn} of {repeats}" if turn else "first picture: parity")
        for name, run in _in_turn(runs, turn):
            path = pictures / f"{name}.png"
            path.unlink(missing_ok=True)
            ran = launch(run.command)
            if turn:
                run.seconds.append(ran.seconds)
                run.to_file.append(there_after(path, ran))
                run.peak_rss.append(ran.peak_rss)
        if turn == 0:
            wanted, got = (
                {"pixels": np.asarray(Image.open(pictures / f"{name}.png").convert("RGB"))}
                for name in (PEER, OURS)
            )
            if (wrong := Gate().refusal(wanted, got)) is not None:
                del runs[OURS]
                return runs, wrong
    return runs, None


def there_after(path: Path, ran: Ran) -> float:
    """Seconds from the start of a process until the file it left was whole and had its name.

    That is when the file last changed in any way, its renaming included. The file system's clock
    ticks every few milliseconds, and the end of the process bounds it.
    """
    return min(max(path.stat().st_ctime - ran.started_at, 0.0), ran.seconds)


def imports(repeats: int, tell: Tell) -> dict[str, Runs]:
    """The processes that only import each contender, in turn, after one of each untimed.

    Their seconds end with the import and those of `--help` with the process.
    """
    runs = {name: Runs([*PYTHON, "-c", f"{code}; {SAY_TIME}"]) for name, code in IMPORTS.items()}
    runs["help"] = Runs([*PYTHON, "-m", "diffusion_rt", "--help"])
    for turn in range(1 + repeats):
        tell(f"import: run {turn} of {repeats}" if turn else "import: warm-up")
        for name, run in _in_turn(runs, turn):
            ran = launch(run.command)
            if turn:
                run.seconds.append(ran.seconds if name == "help" else imported_after(ran))
                run.peak_rss.append(ran.peak_rss)
    return runs


def imported_after(ran: Ran) -> float:
    """Seconds from the start of a process until it said what time it was."""
    try:
        return float(ran.said.splitlines()[-1]) - ran.started_at
    except ValueError:
        raise Fault(f"an import ended in other words than the time: {ran.said[-200:]}") from None


def _in_turn(runs: dict[str, Runs], turn: int) -> list[tuple[str, Runs]]:
    """All of them, every second turn from the last on."""
    return list(runs.items())[:: -1 if turn % 2 else 1]


def records_of_pictures(
    origin: Origin, runs: dict[str, Runs], wrong: str | None, setting: dict[str, str | int | float]
) -> list[Record]:
    """Of each contender the seconds to the picture and to the end and the peak of memory."""
    if wrong is not None:
        return [origin.record(ALL, OURS, setting, wrong=wrong)]
    found = []
    for name, run in runs.items():
        peak = int(max(run.peak_rss))
        for measure, seconds in (("first-picture", run.to_file), ("first-exit", run.seconds)):
            values = spread(seconds)
            found.append(origin.record(measure, name, setting, spread=values, peak_rss=peak))
        memory = spread(run.peak_rss)
        found.append(origin.record("peak-rss", name, setting, unit="bytes", spread=memory))
    ours, theirs = runs[OURS], runs[PEER]
    for measure, a, b in (
        ("first-picture", ours.to_file, theirs.to_file),
        ("first-exit", ours.seconds, theirs.seconds),
        ("peak-rss", ours.peak_rss, theirs.peak_rss),
    ):
        found.append(ratio(origin, measure, setting, a, b))
    return found


def records_of_imports(origin: Origin, runs: dict[str, Runs]) -> list[Record]:
    """The seconds and memory of processes that import or print the help, and nothing else."""
    found = []
    for name, run in runs.items():
        measure, contender = ("help", OURS) if name == "help" else ("imported", name)
        peak = int(max(run.peak_rss))
        values = spread(run.seconds)
        found.append(origin.record(measure, contender, {}, spread=values, peak_rss=peak))
    found.append(ratio(origin, "imported", {}, runs[OURS].seconds, runs[PEER].seconds))
    return found


def ratio(
    origin: Origin,
    measure: str,
    setting: dict[str, str | int | float],
    ours: Sequence[float],
    theirs: Iterable[float],
) -> Record:
    """How many times as much as we diffusers takes, turn by turn."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return origin.record(measure, OURS, setting, unit="ratio", against=PEER, spread=spread(ratios))

"""What a first picture costs in a fresh process: time, memory, and the disk that it presupposes."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_rt.bench import installed
from diffusion_rt.bench.case import Case
from diffusion_rt.bench.launch import Ran, launch
from diffusion_rt.bench.parity import Gate
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import ALL, OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.engines.errors import BadInput

PEER = "diffusers"
SCRIPT = Path(__file__).with_name("draw_with_diffusers.py")
# Of what pip would download, the packages whose versions are told.
TOLD = (
    *("torch", "diffusers", "transformers", "onnxruntime-gpu", "tensorrt", "cuda-bindings"),
    *("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvrtc", "numpy"),
)
PYTHON = (sys.executable, "-P")  # nothing that lies beside a script may hide a package

# What is loaded before anything is drawn, contender by contender.
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


def commands(case: Case, *, model: Path, threads: int, pictures: Path) -> dict[str, list[str]]:
    """How each contender is told to draw the case's one picture to `pictures/CONTENDER.png`."""
    if case.images != 1:
        raise BadInput(f"startup draws one picture, not {case.images}; leave out --batches")
    common = [
        *("--model", str(model), "--width", str(case.width), "--height", str(case.height)),
        *("--steps", str(case.steps), "--guidance-scale", str(case.guidance_scale)),
        *("--seed", str(case.seed), "--threads", str(threads)),
    ]
    ours = ["-m", "diffusion_rt", "generate", "--overwrite"]
    return {
        name: [
            *(*PYTHON, *program, *common, "--output", str(pictures / f"{name}.png")),
            *("--", case.prompt),
        ]
        for name, program in ((OURS, ours), (PEER, [str(SCRIPT)]))
    }


def first_pictures(
    case: Case, *, model: Path, threads: int, pictures: Path, repeats: int, tell: Tell
) -> tuple[dict[str, Runs], str | None]:
    """The processes of each contender, in turn, and what is wrong with our picture if anything.

    The first of each is not timed: it brings the files into the system's cache, and its picture is
    held against that of diffusers.
    """
    runs = {
        name: Runs(command)
        for name, command in commands(case, model=model, threads=threads, pictures=pictures).items()
    }
    for turn in range(1 + repeats):
        tell(f"first picture: run {turn} of {repeats}" if turn else "first picture: parity")
        for name, run in runs.items():
            path = pictures / f"{name}.png"
            path.unlink(missing_ok=True)
            ran = launch(run.command)
            if turn:
                run.seconds.append(ran.seconds)
                run.to_file.append(written_after(path, ran))
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


def written_after(path: Path, ran: Ran) -> float:
    """Seconds from the start of a process until the file it left was last written to.

    The file system's clock ticks every few milliseconds, and the end of the process bounds it.
    """
    return min(max(path.stat().st_mtime - ran.started_at, 0.0), ran.seconds)


def imports(repeats: int, tell: Tell) -> dict[str, Runs]:
    """The processes that only import each contender, in turn, after one of each untimed."""
    runs = {name: Runs([*PYTHON, "-c", code]) for name, code in IMPORTS.items()}
    runs["help"] = Runs([*PYTHON, "-m", "diffusion_rt", "--help"])
    for turn in range(1 + repeats):
        tell(f"import: run {turn} of {repeats}" if turn else "import: warm-up")
        for run in runs.values():
            ran = launch(run.command)
            if turn:
                run.seconds.append(ran.seconds)
                run.peak_rss.append(ran.peak_rss)
    return runs


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
        found.append(_ratio(origin, measure, setting, a, b))
    return found


def records_of_imports(origin: Origin, runs: dict[str, Runs]) -> list[Record]:
    """The seconds and memory of processes that import or print the help, and nothing else."""
    found = []
    for name, run in runs.items():
        measure, contender = ("help", OURS) if name == "help" else ("import", name)
        peak = int(max(run.peak_rss))
        values = spread(run.seconds)
        found.append(origin.record(measure, contender, {}, spread=values, peak_rss=peak))
    found.append(_ratio(origin, "import", {}, runs[OURS].seconds, runs[PEER].seconds))
    return found


def records_of_disk(origin: Origin) -> list[Record]:
    """Bytes of what has to be installed to draw."""
    ours = installed.size_of(installed.closure(installed.OURS)) + installed.own_size()
    theirs = installed.size_of(installed.closure(installed.DIFFUSERS))
    cuda = any(name.startswith("nvidia-") for name in installed.closure(["torch"]))
    setting: dict[str, str | int | float] = {"torch": "cuda" if cuda else "cpu"}
    return [
        *(
            origin.record("installed", name, setting, unit="bytes", spread=spread([size]))
            for name, size in ((OURS, ours), (PEER, theirs))
        ),
        _ratio(origin, "installed", setting, [ours], [theirs]),
    ]


def records_of_downloads(origin: Origin, ours: Path, theirs: Path) -> list[Record]:
    """Bytes that pip would download to draw on a GPU, this package's own included.

    `ours` and `theirs` are reports of pip; what ours lists says which engine it is for.
    """
    mine, others = installed.downloads(ours), installed.downloads(theirs)
    engines = {"tensorrt": "trt", "onnxruntime-gpu": "ort", "onnxruntime": "ort"}
    engine = next((name for one, name in engines.items() if one in mine.versions), "native")
    named = {**others.versions, **mine.versions}
    versions = {"diffusion-rt": origin.versions["diffusion-rt"]}
    versions |= {name: version for name, version in named.items() if name in TOLD}
    origin = replace(
        origin,
        versions=versions,
        command=f"{origin.command} --downloads-ours FILE --downloads-theirs FILE",
    )
    setting: dict[str, str | int | float] = {"torch": "cuda", "engine": engine}
    sizes = mine.nbytes + installed.own_size(), others.nbytes
    return [
        *(
            origin.record("download", name, setting, unit="bytes", spread=spread([size]))
            for name, size in zip((OURS, PEER), sizes, strict=True)
        ),
        _ratio(origin, "download", setting, sizes[:1], sizes[1:]),
    ]


def _ratio(
    origin: Origin,
    measure: str,
    setting: dict[str, str | int | float],
    ours: Sequence[float],
    theirs: Iterable[float],
) -> Record:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return origin.record(measure, OURS, setting, unit="ratio", against=PEER, spread=spread(ratios))

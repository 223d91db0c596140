"""All CPU records that the tables of README are made of, by one command on two cores."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import diffusion_rt

SDXL = "sdxl"  # the folder of the generated checkpoint, where all of this is done

# Of growth what torch.compile, which takes minutes for each, is measured at.
FEWER = "--sizes 64x64,128x128,256x256 --batches 1,4 --axes"

# Minutes that each should take on two idle cores of an AMD EPYC, by runs of parts of it.
# In this order: what is most asked for first, the roof right behind the step that lies under it.
COMMANDS = {
    "end-to-end --setting growth --against diffusers": 3,
    f"end-to-end {FEWER} --against diffusers,compile,ort": 10,
    "stages --against diffusers,compile": 2,
    "stages --engine null --sizes 1024x1024": 0.2,
    "stages --engine idle --sizes 1024x1024 --samplers euler,euler-a --repeats 100": 0.2,
    "stages --engine idle-cuda --sizes 1024x1024 --samplers euler,euler-a --repeats 100": 0.2,
    "startup --repeats 7": 2,
    "operators --setting growth --repeats 20": 0.5,
    "build --engine native --archs 90": 0.5,
    f"export --architecture sdxl-base --keep {SDXL}": 4,
    f"step --model {SDXL} --sizes 512x512 --guidance-scale 1 --apart --repeats 6 --warm-up 1": 6,
    "chip": 1,
}
PACKAGES = Path(diffusion_rt.__file__).absolute().parents[1]
LONGEST = 3600  # seconds of one benchmark, after which it is ended: nobody need be there
DISK, MEMORY = 8e9, 16e9  # bytes that the checkpoint and its step take

Run = Callable[[Sequence[str], Path], int]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ran:
    """A benchmark, the seconds that it took, and its exit status."""

    command: str
    seconds: float
    status: int


def run(words: Sequence[str], folder: Path) -> int:
    """Run one benchmark in a process of its own, in that folder; its status, 124 if it hung."""
    command = [sys.executable, "-P", "-m", "diffusion_rt", "bench", *words]
    # In another folder a relative path to this very package leads elsewhere.
    places = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, timeout=LONGEST)
        return done.returncode
    except subprocess.TimeoutExpired:
        return 124


def plan() -> list[str]:
    """What is going to run, and how long that takes, in lines."""
    rows = [f"{minutes:>5.1f} min  {command}" for command, minutes in COMMANDS.items()]
    return [*rows, f"{sum(COMMANDS.values()):>5.1f} min in all, on two cores"]


def doubts(folder: Path, memory: int | None) -> list[str]:
    """What a machine has too little of, given its free memory in bytes if that is known."""
    found = []
    for what, least, there in (
        (f"on the disk of {folder}", DISK, disk_usage(folder).free),
        ("of memory", MEMORY, memory),
    ):
        if there is not None and there < least:
            found.append(
                f"{there / 1e9:.1f} GB are free {what}, and SDXL takes {least / 1e9:.0f}: "
                "`export` or `step` will fail, the others run"
            )
    return found


def everything(output: Path, folder: Path, tell: Tell, run: Run = run) -> list[Ran]:
    """Run all of COMMANDS, one after the other, whether others failed or not.

    `folder` is an empty one for a checkpoint of 7 GB, which stays there.
    """
    ran = []
    for number, command in enumerate(COMMANDS, start=1):
        tell(f"[{number} of {len(COMMANDS)}] diffusion-rt bench {command}")
        begun = time.monotonic()
        status = run([*shlex.split(command), "--output", str(output.resolve())], folder)
        ran.append(Ran(command, time.monotonic() - begun, status))
        tell(_told(ran[-1]))
    return ran


def summary(ran: Sequence[Ran]) -> list[str]:
    """What came of each benchmark, in lines."""
    minutes = sum(one.seconds for one in ran) / 60
    failed = sum(one.status != 0 for one in ran)
    rows = [f"{_told(one):<22}  {one.command}" for one in ran]
    return [*rows, f"{minutes:.1f} min; {len(ran) - failed} of {len(ran)} done, {failed} failed"]


def _told(one: Ran) -> str:
    how = {0: "done", 124: "took too long"}.get(one.status, f"failed ({one.status})")
    return f"{one.seconds:>5.0f} s  {how}"

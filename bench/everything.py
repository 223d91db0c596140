"""All CPU records that the tables of README are made of, by one command on two cores."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SDXL = "sdxl"  # the folder of the generated checkpoint, where all of this is done

# In this order: what is most asked for first, the roof right behind the step that lies under it.
COMMANDS = (
    "end-to-end --setting growth --against diffusers,compile",
    "stages --against diffusers,compile",
    "stages --engine null --sizes 1024x1024",
    "startup --repeats 7",
    "operators --setting growth --repeats 20",
    "build --engine native --archs 90",
    f"export --architecture sdxl-base --keep {SDXL}",
    f"step --model {SDXL} --sizes 512x512 --guidance-scale 1 --apart --repeats 6 --warm-up 1",
    "chip",
)

Run = Callable[[Sequence[str], Path], int]


def run(words: Sequence[str], folder: Path) -> int:
    """Run one benchmark in a process of its own, in that folder; its status."""
    command = [sys.executable, "-P", "-m", "diffusion_rt", "bench", *words]
    return subprocess.run(command, cwd=folder).returncode


def everything(
    output: Path, folder: Path, tell: Callable[[str], None], run: Run = run
) -> list[str]:
    """Run all of COMMANDS, one after the other; those that failed.

    `folder` is an empty one for a checkpoint of 7 GB, which stays there.
    """
    failed = []
    for command in COMMANDS:
        tell(f"diffusion-rt bench {command}")
        begun = time.monotonic()
        status = run([*shlex.split(command), "--output", str(output.resolve())], folder)
        tell(f"{time.monotonic() - begun:.0f} s")
        if status:
            failed.append(command)
    return failed

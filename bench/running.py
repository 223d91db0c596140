"""What the benchmarks share: what they need, where a run stands, and where its records go."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from diffusion_rt.bench import machine
from diffusion_rt.bench.flags import command_of
from diffusion_rt.bench.gpu_chip import Clocks, NoChip, this_chip
from diffusion_rt.bench.records import Origin, Record, append
from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput

Tell = Callable[[str], None]


def require(*modules: str) -> None:
    """BadInput where one of these is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise BadInput(
                f"{module} is not installed; this benchmark needs it: "
                "pip install 'diffusion-rt[cpu,export]'"
            )


def origin_of(benchmark: str, found: argparse.Namespace, model: str | None) -> Origin:
    """What all records of this run share; a word on standard error where the machine is busy.

    `model` is the name of the one that was asked for. Raises BadInput where `--device cuda` finds
    no GPU.
    """
    if getattr(found, "device", "cpu") == "cuda":
        try:
            this_chip()
        except NoChip as error:
            raise BadInput(f"--device cuda: {error}; leave it out to measure on the CPU") from None
        return origin_on(benchmark, found, model)
    warn_if_busy()
    return Origin(benchmark=benchmark, command=command_of(benchmark, found, model))


def origin_on(benchmark: str, found: argparse.Namespace, model: str | None) -> Origin:
    """The same on the GPU of this machine, or on its processor where there is none."""
    warn_if_busy()
    origin = Origin(benchmark=benchmark, command=command_of(benchmark, found, model))
    try:
        chip = this_chip()
    except NoChip:
        return origin
    device = Clocks(chip.name).on(chip.device)
    return replace(origin, device=device, versions={**machine.versions(), "cuda": chip.cuda})


def warn_if_busy() -> None:
    """Say so where other programs take more than half of the cores."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > cores / 2:
        print(
            f"other programs keep this machine busy (load {load:.1f}, {cores} cores): the figures "
            "will not repeat",
            file=sys.stderr,
        )


def keep(output: Path, records: Sequence[Record], tell: Tell) -> None:
    """Append the records, and print each in a line."""
    append(output, records)
    tell("")
    for record in records:
        print(plain(str(record)))
    sys.stdout.flush()


@contextmanager
def telling() -> Iterator[Tell]:
    """A line on standard error that says what is going on, where somebody is looking at it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield lambda text: None
        return

    def tell(text: str) -> None:
        print(f"\r\x1b[K{plain(text)}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        tell("")


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """The folder to keep, or one that goes when the block ends."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

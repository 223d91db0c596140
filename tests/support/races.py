"""Contenders without arithmetic, and records without measurements."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Outcome, own_peak_rss
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.engines.errors import BadInput

DEVICE = Device(kind="cpu", name="Test CPU", cores=2, memory=8 << 30)


def case(**changes: Any) -> Case:
    """A small case."""
    settings: dict[str, Any] = {
        "prompt": "a star",
        "width": 16,
        "height": 16,
        "images": 1,
        "steps": 3,
        "sampler": "euler",
        "guidance_scale": 3.0,
        "seed": 5,
    }
    return Case(**settings | changes)


class FakeContender:
    """Draws noise of the case's seed, `error` added, and notes in `log` that it ran."""

    def __init__(
        self, name: str, log: list[str], *, error: float = 0.0, seconds: tuple[float, ...] = (1.0,)
    ) -> None:
        self.name = name
        self.runs = 0
        self._log, self._error, self._seconds = log, error, itertools.cycle(seconds)

    def run(self, case: Case) -> Outcome:
        self.runs += 1
        self._log.append(self.name)
        latents = np.random.default_rng(case.seed).standard_normal((1, 4, 2, 2), np.float32)
        laps = {"picture": [next(self._seconds)], "step": [0.1, 0.3, 0.2]}
        return Outcome({"latents": latents + np.float32(self._error)}, laps)

    def peak_rss(self) -> int | None:
        return 1000

    def peak_device(self) -> int | None:
        return 2000

    def close(self) -> None:
        self._log.append(f"{self.name} closed")


class Elsewhere:
    """What a worker's test has made in the other process; the prompt says what to do."""

    name = "elsewhere"

    def __init__(self, *, fault: str = "") -> None:
        if fault:
            raise BadInput(fault)

    def run(self, case: Case) -> Outcome:
        if case.prompt == "die":
            os._exit(7)
        if case.prompt == "fail":
            raise ZeroDivisionError("by\nzero")
        taken = bytearray(case.images << 20)
        taken[::4096] = b"x" * len(taken[::4096])
        return Outcome({"process": np.array(os.getpid())}, {"picture": [float(case.steps)]})

    def peak_rss(self) -> int | None:
        return own_peak_rss()

    def peak_device(self) -> int | None:
        return 456

    def close(self) -> None:
        pass


def ticking(*moments: float) -> Callable[[], float]:
    """A clock that shows these moments, one at a time."""
    shown: Iterator[float] = iter(moments)
    return lambda: next(shown)


def origin(benchmark: str = "end-to-end", device: Device = DEVICE, run: str = "0" * 16) -> Origin:
    """An origin on no machine; all of them are one run unless it is said."""
    return Origin(
        benchmark=benchmark,
        command=f"diffusion-rt bench {benchmark}",
        device=device,
        versions={"python": "3.11.0", "onnxruntime": "1.0", "torch": "2.0+cpu"},
        commit=("0" * 40, False),
        run=run,
    )


def drawn(
    seconds: float,
    contender: str = OURS,
    *,
    measure: str = "picture",
    against: str | None = None,
    benchmark: str = "end-to-end",
    device: Device = DEVICE,
    n: int = 3,
    run: str = "0" * 16,
    **changes: Any,
) -> Record:
    """A record of a picture; `changes` are to the setting."""
    setting: Mapping[str, str | int | float] = {
        "model": "tiny",
        "size": "16x16",
        "images": 1,
        "steps": 3,
        "sampler": "euler",
        "guidance_scale": 3.0,
        "threads": 2,
        **changes,
    }
    return origin(benchmark, device, run).record(
        measure,
        contender,
        setting,
        unit="ratio" if against else "s",
        against=against,
        spread=spread([seconds * factor for factor in np.linspace(0.9, 1.1, n)]),
    )


def growing() -> list[Record]:
    """Three sizes and two numbers of images, by two contenders, in one run."""
    records = []
    for factor, contender in ((1.0, OURS), (3.0, "diffusers")):
        for side in (16, 32, 64):
            records.append(drawn(factor * side**2 / 1e3, contender, size=f"{side}x{side}"))
        records.append(drawn(factor, contender, images=2))
    return records

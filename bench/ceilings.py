"""What a processor can do at most, measured: the roof that the points of a roofline lie under.

A product of two large float32 matrices, by NumPy's BLAS and by PyTorch's where it is installed, and
a copy of memory that no cache holds. The better of the two products is the roof.
"""

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Laps, Outcome, own_peak_rss
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.worker import Worker

SIDE = 3072  # of the matrices
FLOP = 2 * SIDE**3
COPIED = 1 << 28  # bytes, eight times the largest cache and more
MEASURES = {"matmul": {"m": SIDE, "n": SIDE, "k": SIDE}, "copy": {"copied": COPIED}}
# What NumPy's BLAS may be; it reads these when it is loaded.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
CASE = Case(
    prompt="", width=8, height=8, images=1, steps=1, sampler="euler", guidance_scale=1, seed=0
)


class NumpyCeiling:
    """By NumPy, whose BLAS takes as many threads as the environment said when it was loaded."""

    name = "numpy"

    def __init__(
        self,
        *,
        threads: int,
        side: int = SIDE,
        copied: int = COPIED,
        clock: Clock = time.perf_counter,
    ) -> None:
        draw = np.random.default_rng(0)
        self._a, self._b = (draw.standard_normal((side, side), np.float32) for _ in range(2))
        self._product = np.empty_like(self._a)
        self._source = draw.integers(0, 256, copied, np.uint8)
        self._target = np.empty_like(self._source)
        self._clock = clock

    def run(self, case: Case) -> Outcome:
        """One product and one copy."""
        moments = [self._clock()]
        self._multiply()
        moments.append(self._clock())
        self._copy()
        moments.append(self._clock())
        laps = {"matmul": [moments[1] - moments[0]], "copy": [moments[2] - moments[1]]}
        return Outcome({"product": np.asarray(self._product[:2, :2])}, laps)

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """None: it uses no GPU."""
        return None

    def close(self) -> None:
        """Nothing is open."""

    def _multiply(self) -> None:
        np.matmul(self._a, self._b, out=self._product)

    def _copy(self) -> None:
        np.copyto(self._target, self._source)


class TorchCeiling(NumpyCeiling):
    """The same by PyTorch, over the same memory."""

    name = "torch"

    def __init__(self, *, threads: int, **options: Any) -> None:
        import torch

        super().__init__(threads=threads, **options)
        torch.set_num_threads(threads)
        self._tensors = [torch.from_numpy(x) for x in (self._a, self._b, self._product)]
        self._ends = [torch.from_numpy(x) for x in (self._source, self._target)]

    def _multiply(self) -> None:
        import torch

        a, b, product = self._tensors
        torch.mm(a, b, out=product)

    def _copy(self) -> None:
        self._ends[1].copy_(self._ends[0])


def measured(threads: int, repeats: int, warm_up: int, tell: Tell, **sizes: int) -> dict[str, Laps]:
    """The seconds of each contender, each in a process that was told its number of threads."""
    found: dict[str, Laps] = {}
    contenders = {"numpy": "NumpyCeiling"}
    if find_spec("torch") is not None:
        contenders["torch"] = "TorchCeiling"
    for name, kind in contenders.items():
        before = {variable: os.environ.get(variable) for variable in THREADS}
        os.environ.update({variable: str(threads) for variable in THREADS})
        try:
            worker = Worker(name, f"diffusion_rt.bench.ceilings:{kind}", threads=threads, **sizes)
        finally:
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value
        laps: dict[str, list[float]] = {measure: [] for measure in MEASURES}
        found[name] = laps
        try:
            for turn in range(warm_up + repeats):
                tell(f"{name}: run {turn + 1} of {warm_up + repeats}")
                seconds = worker.run(CASE).seconds
                if turn >= warm_up:
                    for measure in MEASURES:
                        laps[measure] += seconds[measure]
        finally:
            worker.close()
    return found


def records_of(origin: Origin, found: Mapping[str, Laps], threads: int) -> list[Record]:
    """The seconds of each, with its operations or its bytes, read and written counted apart."""
    return [
        origin.record(
            measure,
            name,
            {**MEASURES[measure], "dtype": "float32", "threads": threads},
            spread=spread(seconds),
            flop=FLOP if measure == "matmul" else None,
            nbytes=2 * COPIED if measure == "copy" else None,
        )
        for name, laps in found.items()
        for measure, seconds in laps.items()
    ]

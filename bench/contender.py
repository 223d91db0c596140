"""What runs in a race: something that carries out a case and says how long its stages took."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from diffusion_rt.bench.case import Case

Clock = Callable[[], float]  # seconds since some moment
Laps = Mapping[str, list[float]]

# The measures of a drawn picture, in the order in which they are told.
MEASURES = {
    "picture": "prompt to picture",
    "text": "text encoders",
    "prompt": "of the UNet what depends on the prompt alone",
    "timestep": "of the UNet what depends on the timestep alone",
    "step": "one step: the UNet, guidance, sampler",
    "evaluation": "of a step the UNet",
    "own": "of a step all but the UNet",
    "decode": "VAE decoder",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case: arrays that the parity gate compares, and seconds by measure."""

    arrays: Mapping[str, NDArray[Any]]
    seconds: Laps


class Contender(Protocol):
    """One way to carry out a case."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    def run(self, case: Case) -> Outcome:
        """Carry out the case once, from the first to the last, and take the time meanwhile."""
        ...

    def peak_rss(self) -> int | None:
        """The most memory its process held since its peak was forgotten, in bytes, if it tells."""
        ...

    def peak_device(self) -> int | None:
        """The most memory its process held on a GPU, in bytes, as far as the driver tells."""
        ...

    def close(self) -> None:
        """Give back all memory; a second call does nothing."""
        ...


class Watch:
    """Seconds spent, by measure, each time anew."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        """A watch without laps."""
        self.laps: dict[str, list[float]] = {}
        self._clock = clock
        self._last: float | None = None

    @contextmanager
    def __call__(self, measure: str) -> Iterator[None]:
        """Take the time of a block as one lap."""
        started = self._clock()
        yield
        self.add(measure, self._clock() - started)

    def mark(self, measure: str) -> None:
        """End a lap that began with the mark before; the first mark only begins one."""
        now = self._clock()
        if self._last is not None:
            self.add(measure, now - self._last)
        self._last = now

    def add(self, measure: str, seconds: float) -> None:
        """Add a lap that was timed elsewhere."""
        self.laps.setdefault(measure, []).append(seconds)

    def result(self) -> dict[str, list[float]]:
        """The laps of one picture: stages that run once summed, the steps each by itself.

        Steps are counted from the end of the first, which diffusers does not tell the beginning of.
        """
        evaluations = self.laps.get("evaluation", [])
        steps = self.laps.get("step", [])
        found = {
            name: [sum(laps)]
            for name, laps in self.laps.items()
            if name not in ("evaluation", "step")
        }
        if evaluations:
            found["evaluation"] = evaluations
        if steps:
            found["step"] = steps
        if steps and evaluations:  # where a device runs the loop, nobody sees them one by one
            inside = evaluations[len(evaluations) - len(steps) :]
            found["own"] = [a - b for a, b in zip(steps, inside, strict=True)]
        return {name: found[name] for name in MEASURES if name in found}


def forget_peak_rss() -> None:
    """Have the kernel count the peak of this process from now on, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def own_peak_rss() -> int | None:
    """The most memory this process has held, in bytes, as the kernel counts it.

    That is since its start, or since it was told to forget.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None

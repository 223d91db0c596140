"""Training by the clock: a learning rate that ends on time, and state that survives a stop."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(slots=True)
class Clock:
    """Progress of a run that may use `minutes` in all, counting those before a resume."""

    minutes: float
    spent: float = 0.0  # seconds used by earlier parts of the run
    started: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self.spent + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """The share of the time that is used, 0 to 1."""
        return min(self.seconds / (60 * self.minutes), 1.0)


def rate(progress: float, peak: float, warm: float = 0.01, decay: float = 0.35) -> float:
    """Learning rate: up over the first `warm`, flat, linearly to zero over the last `decay`."""
    return peak * min(progress / warm, 1.0, (1.0 - progress) / decay)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write training state so that a stop at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read training state: tensors and plain values alone, nothing that runs."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state

"""Progress of a build, and the one way to end it early: a step that answers False."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsInt

import tensorrt as trt


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Monitor(trt.IProgressMonitor):
    """Hears of the builder's phases, which lie within each other, from any of its threads."""

    def __init__(self, report: Callable[[float], None]) -> None:
        """`report` hears of the share that is done of the outermost phase, 0 to 1, rising."""
        trt.IProgressMonitor.__init__(self)
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._told = 0.0
        self._cancelled = False
        self.failure: BaseException | None = None  # what `report` raised, which ends the build

    def cancel(self) -> None:
        """End the build at its next step."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether the build was told to end."""
        return self._cancelled

    def phase_start(
        self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt
    ) -> None:
        """Called by TensorRT."""
        with self._lock:
            if parent_phase is None:
                self._told = 0.0
            self._phases[phase_name] = _Phase(parent_phase, max(1, int(num_steps)))

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Called by TensorRT; it goes on where this is True."""
        with self._lock:
            phase = self._phases.get(phase_name)
            if phase is not None:
                phase.done = min(phase.steps, int(step) + 1)
                self._tell()
        return not self._cancelled

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT, perhaps before all steps were done."""
        with self._lock:
            phase = self._phases.get(phase_name)
            if phase is not None:
                phase.done = phase.steps
                self._tell()
                del self._phases[phase_name]

    def _tell(self) -> None:
        share = max(
            (self._share(n) for n, p in self._phases.items() if p.parent is None), default=0
        )
        if share > self._told:
            self._told = share
            try:
                self._report(share)
            except BaseException as failure:  # must not unwind TensorRT's own frames
                self.failure, self._cancelled = failure, True

    def _share(self, name: str) -> float:
        """What is done of a phase, with that of the phases within it."""
        phase = self._phases[name]
        if phase.done >= phase.steps:
            return 1.0
        inner = [self._share(n) for n, p in self._phases.items() if p.parent == name and n != name]
        return (phase.done + max(inner, default=0.0)) / phase.steps

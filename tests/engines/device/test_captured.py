"""Work that comes again is captured, and captured anew when memory has moved."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.device.captured import Captured
from diffusion_rt.kernels.driver.simulator import Simulator


class Work:
    """Fills a byte with `value`, on a simulated stream."""

    def __init__(self) -> None:
        self.device = Simulator()
        self.stream = self.device.stream()
        self.place = self.device.allocate(1)
        self.value = self.generation = self.enqueued = 0
        self.captured = Captured(self.enqueue, lambda: self.generation)

    def enqueue(self, stream: Any) -> None:
        self.enqueued += 1
        stream.fill(self.place, self.value)

    def run(self) -> int:
        """What is written when the work comes once more."""
        self.stream.fill(self.place, 0xFF)
        self.captured.enqueue(self.stream)
        staged = self.device.pinned(1)
        self.stream.copy(staged, self.place)
        self.stream.synchronize()
        return int(np.array(staged.array[0]))


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.captured.close()
    made.device.close()


def test_run_then_captured_then_replayed(work: Work) -> None:
    for value, written, enqueued in ((1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 2, 2)):
        work.value = value
        assert (work.run(), work.enqueued) == (written, enqueued)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_closed_it_is_as_if_for_the_first_time(work: Work, runs: int) -> None:
    for _ in range(runs):
        work.run()
    work.captured.close()
    work.enqueued, work.value = 0, 7
    assert (work.run(), work.enqueued) == (7, 1)
    work.value = 8
    assert (work.run(), work.enqueued) == (8, 2)
    assert (work.run(), work.enqueued) == (8, 2)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_where_memory_has_moved_it_runs_and_is_captured_at_once(work: Work, runs: int) -> None:
    for _ in range(runs):
        work.run()
    for value in (7, 8):
        work.generation += 1
        work.enqueued, work.value = 0, value
        assert (work.run(), work.enqueued) == (value, 2)
        work.value = 0
        assert (work.run(), work.enqueued) == (value, 2)


@pytest.mark.parametrize("failing", [1, 2])
def test_work_that_fails_is_tried_again(work: Work, failing: int) -> None:
    """Uncaptured, or within the capture."""
    enqueue = work.enqueue

    def fail(stream: Any) -> None:
        enqueue(stream)
        if work.enqueued == failing:
            raise KeyboardInterrupt

    work.captured = Captured(fail, lambda: 0)
    for _ in range(failing - 1):
        work.run()
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.value = 5
    assert work.run() == 5
    assert work.enqueued == failing + 1

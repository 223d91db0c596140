"""Work in order: what a stream holds until somebody waits for it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from diffusion_rt.kernels.driver.simulator.memory import Allocation, require


@dataclass(frozen=True, slots=True)
class Work:
    """Something a stream does, and the memory it touches."""

    name: str
    kind: str
    run: Callable[[], None]
    touches: tuple[Allocation, ...]

    def check(self, *, running: bool) -> None:
        """Raise where memory it touches is gone, or is not there yet."""
        for allocation in self.touches:
            require(allocation, self.name, running=running)


@dataclass(eq=False, slots=True)
class Mark:
    """A recorded point of a queue."""

    queue: "Queue"
    time: float | None = None  # seconds, once passed

    @property
    def passed(self) -> bool:
        return self.time is not None


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait here for a mark, usually of another queue."""

    mark: Mark


Item = Work | Mark | Hold


@dataclass(eq=False, slots=True)
class Queue:
    """Items that run in order, as late as possible."""

    items: deque[Item] = field(default_factory=deque)

    def step(self) -> None:
        """Run the first item, and whatever it waits for."""
        item = self.items.popleft()
        if isinstance(item, Work):
            item.check(running=True)
            item.run()
        elif isinstance(item, Mark):
            item.time = perf_counter()
        else:
            item.mark.queue.run(item.mark)

    def run(self, until: Mark | None = None) -> None:
        """Run to a mark, or to the end."""
        while self.items and not (until is not None and until.passed):
            self.step()

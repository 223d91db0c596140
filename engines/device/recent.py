"""What is made for each size of request, kept for the sizes used last."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from diffusion_rt.engines.errors import OutOfMemory


class Closing(Protocol):
    """What holds memory until it is closed."""

    def close(self) -> None: ...


Size = TypeVar("Size", bound=Hashable)
Made = TypeVar("Made", bound=Closing)


class Recent(Generic[Size, Made]):
    """What was made for some sizes; the longest unused goes where it is too much."""

    def __init__(self, kept: int) -> None:
        """Of at most `kept` sizes, 1 or more."""
        self._kept = kept
        self._made: OrderedDict[Size, Made] = OrderedDict()

    def use(
        self,
        size: Size,
        make: Callable[[], Made],
        ready: Callable[[Made], None] = lambda made: None,
    ) -> Made:
        """What there is for a size, made if it is not there, then made `ready`.

        Where that runs out of memory, others are closed until it does not; with none left it is
        closed itself, and OutOfMemory raised. No work on any of them may be under way.
        """
        while True:
            try:
                if size not in self._made:
                    self._made[size] = make()
                self._made.move_to_end(size)
                ready(self._made[size])
                break
            except OutOfMemory:
                others = [known for known in self._made if known != size]
                if others:
                    self._made.pop(others[0]).close()
                    continue
                if size in self._made:
                    self._made.pop(size).close()
                raise
        while len(self._made) > self._kept:
            self._made.popitem(last=False)[1].close()
        return self._made[size]

    def close(self) -> None:
        """Close all of them."""
        while self._made:
            self._made.popitem()[1].close()

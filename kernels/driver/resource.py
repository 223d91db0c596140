"""Lifetimes: what is made from a device is closed once, and never used afterwards."""

from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.interface import Closing


class Resource(Closing):
    """Something that is open until closed; the first of its owners to close takes it along.

    A subclass calls `__init__` here as soon as it holds a driver's object, not before: one whose
    making failed is nobody's.
    """

    def __init__(self, *owners: "Resource") -> None:
        self._open = True
        self._owned: dict[int, Resource] = {}  # in order of making; kept until closed
        self._owners = owners
        for owner in owners:
            owner._owned[id(self)] = self

    def require_open(self) -> None:
        """Raise Misuse once this is closed."""
        if not self._open:
            raise Misuse(f"a closed {type(self).__name__} is used")

    def close(self) -> None:
        """Close what was made from this, newest first, then this; a second call does nothing."""
        if not self._open:
            return
        self._before_close()
        for resource in reversed(list(self._owned.values())):
            resource.close()
        self._open = False
        for owner in self._owners:
            owner._owned.pop(id(self), None)
        self._release()

    def _before_close(self) -> None:
        """What must hold, or be waited for, before anything is closed."""

    def _release(self) -> None:
        """Give the driver's object back."""

"""How much device memory the native engine may still take."""

from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.kernels.driver import Device


class Room:
    """What is free on a device, or what a budget leaves of it where that is less."""

    def __init__(self, device: Device, budget: int | None = None) -> None:
        """`budget` is in bytes, counted from now; None is all there is."""
        self._device = device
        self._budget = budget
        self._free = device.memory().free

    @property
    def budget(self) -> int | None:
        """The limit, or None."""
        return self._budget

    def free(self) -> int:
        """Bytes that may still be taken."""
        free = self._device.memory().free
        if self._budget is None:
            return free
        return max(0, min(free, self._budget - (self._free - free)))

    def want(self, what: str, nbytes: int) -> None:
        """Raise OutOfMemory with what is needed and what is free, where that is less."""
        free = self.free()
        if nbytes > free:
            raise short_of_memory(what, nbytes, free)

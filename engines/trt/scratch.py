"""The one allocation that all contexts compute in, one after the other."""

from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver import Device
from diffusion_rt.kernels.driver.interface import Buffer


class Scratch:
    """Device memory as large as the neediest of those that share it."""

    def __init__(self, device: Device) -> None:
        """None yet."""
        self._device = device
        self._buffer: Buffer | None = None
        self.generation = 0
        """Counts how often the memory moved."""

    @property
    def address(self) -> int:
        """Where it is; 0 where there is none."""
        return self._buffer.address if self._buffer is not None else 0

    @property
    def nbytes(self) -> int:
        """How much there is."""
        return self._buffer.nbytes if self._buffer is not None else 0

    def reserve(self, nbytes: int, what: str) -> None:
        """Have at least so many bytes; nothing may be under way that uses what there is.

        Raises OutOfMemory about `what`; there is then as much as before, if elsewhere.
        """
        had = self.nbytes
        if nbytes <= had:
            return
        self.close()
        free = self._device.memory().free
        try:
            self._take(nbytes)
        except driver.OutOfMemory:
            if had:
                self._take(had)
            raise short_of_memory(f"{what}: scratch", nbytes, free) from None

    def close(self) -> None:
        """Give it back."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None
            self.generation += 1

    def _take(self, nbytes: int) -> None:
        self._buffer = self._device.allocate(nbytes)
        self.generation += 1

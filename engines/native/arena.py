"""Memory that all engines of a device share, since one runs after the other."""

from collections.abc import Callable

from diffusion_rt.kernels.driver import Device, OutOfMemory, part
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Buffer

COUNTER = 4  # bytes of a uint32


class Arena:
    """One buffer: counters that stay zero between operations, then activations and scratch.

    It moves when it grows; `generation` then changes, and what was captured is stale.
    """

    def __init__(self, device: Device, wait: Callable[[], None]) -> None:
        """Take nothing yet; `wait` returns once no work on the memory is under way."""
        self._device, self._wait = device, wait
        self._stream = device.stream()
        self._buffer: Buffer | None = None
        self._sizes = (0, 0)  # bytes of counters, bytes of the rest
        self.generation = 0

    @property
    def counters(self) -> int:
        """The address of the first counter."""
        return self._taken().address

    @property
    def address(self) -> int:
        """Where activations begin."""
        return self._taken().address + self._sizes[0]

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return sum(self._sizes)

    def reserve(self, nbytes: int, counters: int) -> None:
        """Have at least so many bytes and counters; raises the driver's OutOfMemory.

        The old memory is given back before the new is taken. Where the new cannot be had, the old
        size is taken again, so that other engines can go on.
        """
        before = self._sizes
        wanted = (_rounded(counters * COUNTER), _rounded(nbytes))
        grown = (max(before[0], wanted[0]), max(before[1], wanted[1]))
        if grown == before:
            return
        self.release()
        try:
            self._take(grown)
        except OutOfMemory:
            if sum(before):
                self._take(before)
            raise

    def shrink(self, nbytes: int) -> None:
        """Keep no more than so many bytes; none at all for 0."""
        if nbytes == 0:
            self.release()
        elif self._sizes[1] > _rounded(nbytes):
            counters = self._sizes[0]
            self.release()
            self._take((counters, _rounded(nbytes)))

    def release(self) -> None:
        """Give the memory back once no work on it is under way."""
        if self._buffer is None:
            return
        self._wait()
        self._buffer.close()
        self._buffer = None
        self._sizes = (0, 0)
        self.generation += 1

    def close(self) -> None:
        """Give everything back for good."""
        self.release()
        self._stream.close()

    def _take(self, sizes: tuple[int, int]) -> None:
        self._buffer = self._device.allocate(sum(sizes))
        self._sizes = sizes
        self.generation += 1
        self._stream.fill(part(self._buffer, 0, sizes[0]), 0)
        self._stream.synchronize()

    def _taken(self) -> Buffer:
        if self._buffer is None:
            raise OutOfMemory("the memory for activations could not be had again; bind once more")
        return self._buffer


def _rounded(nbytes: int) -> int:
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT

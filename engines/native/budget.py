"""A device of which only some memory may be taken: to everything above it, a smaller one."""

from diffusion_rt.kernels.driver import Device, Limits, OutOfMemory, TensorMap
from diffusion_rt.kernels.driver.interface import (
    Buffer,
    Closing,
    Event,
    HostBuffer,
    Memory,
    Module,
    Pool,
    Stream,
)


class BudgetedDevice(Closing):
    """A `Device` that takes no more than a budget, whatever else is free.

    What is taken is what the device's own count has fallen by since this was made, so what other
    processes take meanwhile counts too. The driver's context and kernels are not in it.
    """

    def __init__(self, device: Device, budget: int) -> None:
        """`budget` is in bytes."""
        self._device = device
        self._budget = budget
        self._free_before = device.memory().free

    @property
    def name(self) -> str:
        """That of the device."""
        return self._device.name

    @property
    def arch(self) -> int:
        """That of the device."""
        return self._device.arch

    @property
    def driver(self) -> str:
        """That of the device."""
        return self._device.driver

    @property
    def limits(self) -> Limits:
        """Those of the device."""
        return self._device.limits

    def memory(self) -> Memory:
        """What the budget leaves, or the device where that has less."""
        found = self._device.memory()
        left = self._budget - (self._free_before - found.free)
        return Memory(max(0, min(found.free, left)), min(found.total, self._budget))

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory; raises OutOfMemory where the budget leaves less."""
        free = self.memory().free
        if nbytes > free:
            raise OutOfMemory(
                f"allocate {nbytes} bytes of device memory: {free} of a budget of {self._budget} "
                "are left; ask for a smaller size, fewer images, or a larger --memory"
            )
        return self._device.allocate(nbytes)

    def pinned(self, nbytes: int) -> HostBuffer:
        """Of the host, and so in no budget."""
        return self._device.pinned(nbytes)

    def pool(self) -> Pool:
        """A pool of the device, which the budget does not hold."""
        return self._device.pool()

    def stream(self) -> Stream:
        """A stream of the device."""
        return self._device.stream()

    def event(self, *, timed: bool = False) -> Event:
        """An event of the device."""
        return self._device.event(timed=timed)

    def load(self, image: bytes) -> Module:
        """An image on the device."""
        return self._device.load(image)

    def tensor_map(self, described: TensorMap) -> bytes:
        """A tensor map of the device."""
        return self._device.tensor_map(described)

    def close(self) -> None:
        """Close the device."""
        self._device.close()

"""Gigabytes of a simulated device's addresses, of which only what is touched is memory."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.simulator import Simulator
from support.kernel_bench import KernelBench

BELOW = 1 << 34  # bytes; an offset that has become negative stays within
ABOVE = 1 << 35


class SparseMemory:
    """Elements at any distance from `base`; those that nobody wrote are 0."""

    def __init__(self, bench: KernelBench) -> None:
        """Skips the test on a real device."""
        if not isinstance(bench.device, Simulator):
            pytest.skip("skipped: only a simulated device has so many addresses to spare")
        self._space = bench.device.space
        self._allocation = self._space.reserve(BELOW + ABOVE, device=False)
        self._allocation.state = "live"  # without poison, which would be gigabytes
        self.base = self._allocation.address + BELOW

    def write(self, addresses: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put each value at its address."""
        for address, value in zip(addresses.reshape(-1), values.reshape(-1), strict=True):
            assert address + value.itemsize < self.base + ABOVE
            self._space.view(int(address), value.itemsize)[:] = np.frombuffer(value, np.uint8)

    def read(self, addresses: NDArray[np.int64], dtype: Any) -> NDArray[Any]:
        """What lies at each address."""
        size = np.dtype(dtype).itemsize
        found = [self._space.view(int(at), size) for at in addresses.reshape(-1)]
        values: NDArray[Any] = np.concatenate(found).view(dtype)
        return values.reshape(addresses.shape)

    def close(self) -> None:
        """Give the memory back."""
        self._space.free(self._allocation, device=False)

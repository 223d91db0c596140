"""A simulated device with host-compiled kernels, and arrays that come and go."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.compile import CompileError, host_library
from diffusion_rt.kernels.driver import Launch
from diffusion_rt.kernels.driver.simulator import Simulator


class KernelBench:
    """Runs kernels of the catalogue on the simulator, on arrays."""

    def __init__(self, variants: Sequence[Variant], seed: int | None = None) -> None:
        """Skips the test where there is no C++ compiler."""
        try:
            image = host_library(variants)
        except CompileError as error:
            if "is not on the path" in str(error):
                pytest.skip(f"skipped: {error}")
            raise
        self.device = Simulator(seed=seed)
        self._buffers: list[Any] = []
        self.stream = self.device.stream()
        module = self.device.load(image)
        self.kernels = {v.kernel: module.kernel(v.kernel, v.parameters) for v in variants}

    def put(self, values: NDArray[Any]) -> Any:
        """A device buffer with these values."""
        values = np.ascontiguousarray(values)
        staged = self.device.pinned(values.nbytes)
        staged.array[:] = values.reshape(-1).view(np.uint8)
        buffer = self.poisoned([values.nbytes], np.uint8)
        self.stream.copy(buffer, staged)
        self.stream.synchronize()
        staged.close()
        return buffer

    def poisoned(self, shape: Sequence[int], dtype: Any) -> Any:
        """A device buffer nobody wrote to: NaN all over."""
        buffer = self.device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._buffers.append(buffer)
        return buffer

    def clear(self) -> None:
        """Free all arrays put or made so far."""
        self.stream.synchronize()
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def get(self, buffer: Any, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """The values of a buffer after all work so far."""
        staged = self.device.pinned(buffer.nbytes)
        self.stream.copy(staged, buffer)
        self.stream.synchronize()
        values: NDArray[Any] = staged.array.view(dtype).reshape(tuple(shape)).copy()
        staged.close()
        return values

    def run(self, kernel: str, launch: Launch, *arguments: Any) -> None:
        """Launch; buffers stand for their addresses."""
        values = [getattr(argument, "address", argument) for argument in arguments]
        self.stream.launch(self.kernels[kernel], launch, values)


def tolerance(plain: NDArray[Any], truth: NDArray[Any]) -> float:
    """Twice the error of plain float32 code, and never under the rounding of one result."""
    error = float(np.abs(plain - truth).max(initial=0))
    return 2 * max(error, float(np.abs(truth).max(initial=0)) * 2.0**-24)

"""A device with kernels on it, and arrays that come and go.

The device is the simulator; DIFFUSION_RT_TEST_DEVICE=cuda takes the GPU that is there, or the real
bindings over the stub driver where that stands for it.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.compile import CompileError, find_compiler, host_library
from diffusion_rt.kernels.driver import Device, Launch, open_device
from diffusion_rt.kernels.driver.simulator import Simulator
from support.stub_driver import STUB

DEVICE = "DIFFUSION_RT_TEST_DEVICE"


class KernelBench:
    """Runs kernels of the catalogue, on arrays."""

    def __init__(self, variants: Sequence[Variant], seed: int | None = None) -> None:
        """`seed` is the simulator's. Skips the test where there is no compiler."""
        real = os.environ.get(DEVICE) == "cuda"
        self.device: Device = open_device() if real else Simulator(seed=seed)
        self.stream: Any = self.device.stream()
        self.kernels = {}
        for variant in variants:
            arch = self.device.arch if real and STUB not in os.environ else None
            module = self.device.load(_image(variant, arch))
            self.kernels[variant.kernel] = module.kernel(variant.kernel, variant.parameters)
        self._buffers: list[Any] = []

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
        self.stream.fill(buffer, 0xFF)
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


@functools.cache
def _image(variant: Variant, arch: int | None) -> bytes:
    """For a chip, or for the host where that is None."""
    try:
        return host_library([variant]) if arch is None else find_compiler().cubin(variant, arch)
    except CompileError as error:
        if "does not compile" in str(error):
            raise
        pytest.skip(f"skipped: {error}")


def tolerance(plain: NDArray[Any], truth: NDArray[Any]) -> float:
    """Twice the error of plain float32 code, and never under the rounding of one result."""
    error = float(np.abs(plain - truth).max(initial=0))
    return 2 * max(error, float(np.abs(truth).max(initial=0)) * 2.0**-24)

"""Simulated buffers, of the device, pinned, and of a pool."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.resource import Resource
from diffusion_rt.kernels.driver.simulator.queue import Work

if TYPE_CHECKING:
    from diffusion_rt.kernels.driver.simulator.device import Simulator
    from diffusion_rt.kernels.driver.simulator.stream import SimulatedStream


class SimulatedBuffer(Resource):
    """Memory of the device, or pinned memory of the host."""

    def __init__(self, device: "Simulator", nbytes: int, *, device_memory: bool) -> None:
        self._device = device
        self._device_memory = device_memory
        self._allocation = device.space.reserve(nbytes, device=device_memory)
        self._allocation.appear()
        super().__init__(device)

    @property
    def address(self) -> int:
        self.require_open()
        return self._allocation.address

    @property
    def nbytes(self) -> int:
        return self._allocation.nbytes

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes as the host sees them; memory of the device is not the host's to read."""
        if self._device_memory:
            raise Misuse("the host reads device memory; copy it to pinned memory")
        return self._device.space.view(self.address, self.nbytes)

    def _before_close(self) -> None:
        if self._device.lost:
            return
        self._device.forbid_in_capture("free memory")
        work = self._device.queued_work_on(self._allocation)
        if work is not None:
            # The driver would wait for the whole device here; nothing of ours wants that.
            raise Misuse(f"memory is freed while {work.name} on it is queued; synchronise first")
        self._allocation.check_fence()

    def _release(self) -> None:
        self._device.space.free(self._allocation, device=self._device_memory)


class SimulatedPool(Resource):
    """Memory that comes and goes in the order of a stream."""

    def __init__(self, device: "Simulator") -> None:
        self._device = device
        super().__init__(device)

    def allocate(self, nbytes: int, stream: "SimulatedStream") -> "SimulatedPoolBuffer":
        self.require_open()
        return SimulatedPoolBuffer(self, self._device, nbytes, stream)

    def trim(self, keep: int = 0) -> None:
        self.require_open()
        if keep < 0:
            raise Misuse(f"{keep} bytes to keep")


class SimulatedPoolBuffer(Resource):
    """Memory of a pool; freed in the order of the stream it was taken on."""

    def __init__(
        self, pool: SimulatedPool, device: "Simulator", nbytes: int, stream: "SimulatedStream"
    ) -> None:
        device.forbid_in_capture("allocate from a pool")
        self._device = device
        self._stream = stream
        self._allocation = device.space.reserve(nbytes, device=True)
        stream.submit(Work("allocation", "allocation", self._allocation.appear, ()))
        super().__init__(pool, stream)

    @property
    def address(self) -> int:
        self.require_open()
        return self._allocation.address

    @property
    def nbytes(self) -> int:
        return self._allocation.nbytes

    def _before_close(self) -> None:
        if not self._device.lost:
            self._device.forbid_in_capture("free memory")

    def _release(self) -> None:
        if self._device.lost:
            return
        space, allocation = self._device.space, self._allocation

        def free() -> None:
            allocation.check_fence()
            space.free(allocation, device=True)

        self._stream.submit(Work("release", "release", free, (allocation,)))

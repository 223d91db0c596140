"""The simulated device."""

import random
import threading

from diffusion_rt.kernels.driver.errors import BadImage, DeviceLost, Misuse
from diffusion_rt.kernels.driver.interface import Memory
from diffusion_rt.kernels.driver.launch import Limits, limits_of
from diffusion_rt.kernels.driver.resource import Resource
from diffusion_rt.kernels.driver.simulator.buffers import SimulatedBuffer, SimulatedPool
from diffusion_rt.kernels.driver.simulator.memory import Allocation, SimulatedMemory
from diffusion_rt.kernels.driver.simulator.module import OpenImage, SimulatedModule, host_library
from diffusion_rt.kernels.driver.simulator.queue import Mark, Queue, Work
from diffusion_rt.kernels.driver.simulator.stream import Capture, SimulatedEvent, SimulatedStream
from diffusion_rt.kernels.driver.tensor_map import TensorMap, plain


class Simulator(Resource):
    """One GPU that is not there."""

    def __init__(
        self,
        *,
        arch: int = 90,
        memory_bytes: int = 1 << 30,
        seed: int | None = None,
        open_image: OpenImage = host_library,
    ) -> None:
        """`seed` lets streams nobody waits for run ahead at random; without one they never do."""
        super().__init__()
        self.space = SimulatedMemory(memory_bytes)
        self.captures: list[Capture] = []
        self.streams: list[SimulatedStream] = []
        self._limits = limits_of(arch)
        self._random = random.Random(seed) if seed is not None else None
        self._open_image = open_image
        self._lost: DeviceLost | None = None
        self._handles = 0

    @property
    def name(self) -> str:
        return "simulator"

    @property
    def arch(self) -> int:
        return self._limits.arch

    @property
    def driver(self) -> str:
        return "simulated"

    @property
    def limits(self) -> Limits:
        return self._limits

    def memory(self) -> Memory:
        self.require_open()
        return Memory(self.space.total - self.space.used, self.space.total)

    def allocate(self, nbytes: int) -> SimulatedBuffer:
        self.forbid_in_capture("allocate")
        return SimulatedBuffer(self, nbytes, device_memory=True)

    def pinned(self, nbytes: int) -> SimulatedBuffer:
        self.forbid_in_capture("allocate pinned memory")
        return SimulatedBuffer(self, nbytes, device_memory=False)

    def pool(self) -> "SimulatedPool":
        self.forbid_in_capture("make a pool")
        return SimulatedPool(self)

    def stream(self) -> SimulatedStream:
        self._handles += 1
        stream = SimulatedStream(self, self._handles)
        self.streams.append(stream)
        return stream

    def event(self, *, timed: bool = False) -> SimulatedEvent:
        return SimulatedEvent(self, timed)

    def load(self, image: bytes) -> SimulatedModule:
        self.forbid_in_capture("load an image")
        if not image:
            raise BadImage("an empty image is no kernel; compile the kernels anew")
        return SimulatedModule(self, self._open_image(image))

    def tensor_map(self, described: TensorMap) -> bytes:
        """A plain map; the whole tensor must lie in one buffer."""
        self.require_open()
        self._limits.check_tensor_maps(described.name)
        self.space.find(described.address, described.nbytes, f"tensor map of {described.name}")
        return plain(described)

    def stream_of(self, handle: int) -> SimulatedStream:
        """The stream a library was given the handle of; raises Misuse for any other number."""
        for stream in self.streams:
            if stream.handle == handle:
                return stream
        raise Misuse(f"{handle} is no stream of this device (the default stream is not used)")

    def run(self, queue: Queue, until: Mark | None = None) -> None:
        """Run a queue to a mark or its end, other streams ahead at random where a seed says so."""
        self.require_open()
        try:
            while queue.items and not (until is not None and until.passed):
                self._drift()
                # Drifting streams wait for others too, and so may have run this one.
                if queue.items and not (until is not None and until.passed):
                    queue.step()
            self.space.check_fences()
        except DeviceLost as error:
            self._lost = error
            raise

    def forbid_in_capture(self, what: str) -> None:
        """Raise Misuse, and spoil the capture, where this thread is capturing."""
        self.require_open()
        for capture in self.captures:
            if capture.thread == threading.get_ident():
                capture.spoiled = what
                raise Misuse(f"{what} inside a capture")

    def queued_work_on(self, allocation: Allocation) -> Work | None:
        """The first work still queued that touches an allocation."""
        for stream in self.streams:
            for item in stream.queue.items:
                if isinstance(item, Work) and allocation in item.touches:
                    return item
        return None

    def require_open(self) -> None:
        super().require_open()
        if self._lost is not None:
            raise self._lost

    def _drift(self) -> None:
        if self._random is None:
            return
        for stream in self._random.sample(self.streams, len(self.streams)):
            for _ in range(self._random.randrange(3)):
                if stream.queue.items:
                    stream.queue.step()

    def _before_close(self) -> None:
        if self._lost is None:
            self.forbid_in_capture("close the device")
            for stream in self.streams:
                self.run(stream.queue)

    @property
    def lost(self) -> bool:
        """Whether the device is lost, so that only closing is left."""
        return self._lost is not None

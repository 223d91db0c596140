"""Kernels of the catalogue on a device, arrays that come and go, and times by replayed graphs."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import host_library
from diffusion_rt.kernels.driver import Device, Launch, open_device
from diffusion_rt.kernels.driver.interface import Buffer, Kernel, Stream
from diffusion_rt.kernels.driver.simulator import Simulator

Array = NDArray[Any]
POISON = 0xFF  # NaN in every float format
WARM_UP = 3  # replays before any that is timed


class Bench:
    """One device, one stream, and the kernels asked for so far, each compiled once."""

    def __init__(self, *, simulated: bool = False) -> None:
        """Raises NoDriver where there is no GPU."""
        self.simulated = simulated
        self.device: Device = Simulator() if simulated else open_device()
        self.stream: Stream = self.device.stream()
        self._images: ImageCache | None = None
        self._kernels: dict[str, Kernel] = {}
        self._buffers: list[Buffer] = []

    def kernel(self, name: str) -> Kernel:
        """A kernel by its row in the catalogue. Raises CompileError."""
        if name not in self._kernels:
            variant = CATALOGUE[name]
            if self.simulated:
                image = _host_image(name)
            else:
                self._images = self._images or ImageCache(cache_folder("kernels"))
                image = self._images.image(variant, self.device.arch)
            module = self.device.load(image)
            self._kernels[name] = module.kernel(variant.kernel, variant.parameters)
        return self._kernels[name]

    def launch(self, name: str, launch: Launch, *arguments: Any) -> None:
        """Enqueue a kernel; buffers stand for their addresses."""
        values = [getattr(argument, "address", argument) for argument in arguments]
        self.stream.launch(self.kernel(name), launch, values)

    def put(self, values: Array) -> Buffer:
        """A device buffer with these values."""
        values = np.ascontiguousarray(values)
        buffer = self.poisoned(values.nbytes)
        self.refill(buffer, values)
        return buffer

    def refill(self, buffer: Buffer, values: Array) -> None:
        """Bring values to the start of a buffer, and wait until they are there."""
        values = np.ascontiguousarray(values)
        if not values.nbytes:
            return
        with self.device.pinned(values.nbytes) as staged:
            staged.array[:] = values.reshape(-1).view(np.uint8)
            self.stream.copy(buffer, staged)
            self.stream.synchronize()

    def poisoned(self, nbytes: int) -> Buffer:
        """A device buffer nobody wrote to."""
        buffer = self.device.allocate(nbytes)
        self._buffers.append(buffer)
        self.stream.fill(buffer, POISON)
        return buffer

    def get(self, buffer: Buffer, shape: Sequence[int], dtype: Any) -> Array:
        """The values of a buffer after all work so far."""
        with self.device.pinned(buffer.nbytes) as staged:
            self.stream.copy(staged, buffer)
            self.stream.synchronize()
            values: Array = staged.array.view(dtype).reshape(tuple(shape)).copy()
        return values

    @property
    def used(self) -> int:
        """Bytes that are taken on the device at this moment, by whomever."""
        memory = self.device.memory()
        return memory.total - memory.free

    def clear(self) -> None:
        """Free all buffers put or made so far."""
        self.stream.synchronize()
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def close(self) -> None:
        """Close the device and all that is on it."""
        self.device.close()

    def times(self, work: Iterable[Callable[[], None]], repeats: int) -> list[float]:
        """Seconds of a piece of work: all of them in one captured graph, replayed `repeats` times.

        One value for each replay: its time between two events, divided by the number of pieces.
        The replays follow each other without a wait, so the device never idles between them.
        """
        pieces = list(work)

        def enqueue() -> None:
            for piece in pieces:
                piece()

        enqueue()  # Whatever is loaded at first use is loaded now: a capture forbids it.
        self.stream.synchronize()
        with self.stream.capture(enqueue) as graph:
            events = [self.device.event(timed=True) for _ in range(repeats + 1)]
            for _ in range(WARM_UP):
                graph.replay(self.stream)
            self.stream.record(events[0])
            for event in events[1:]:
                graph.replay(self.stream)
                self.stream.record(event)
            self.stream.synchronize()
            found = [
                after.elapsed_ms(before) / 1e3 / len(pieces) for before, after in pairwise(events)
            ]
        for event in events:
            event.close()
        return found


@functools.cache
def _host_image(name: str) -> bytes:
    return host_library([CATALOGUE[name]])

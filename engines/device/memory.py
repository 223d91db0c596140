"""Arrays on the device that come and go together, and how the host's arrays get there."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.spec import Dtype
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver import Device, Part
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Buffer, HostBuffer, Span, Stream

Layout = Mapping[str, tuple[tuple[int, ...], Dtype]]
"""Shape and dtype of some arrays, by name."""


class Arrays:
    """Device arrays that are freed together."""

    def __init__(self, device: Device) -> None:
        """None yet."""
        self._device = device
        self._buffers: list[Buffer] = []

    def make(self, what: str, *layouts: Layout) -> list[dict[str, DeviceArray]]:
        """New arrays, not initialised, for each layout.

        Raises OutOfMemory, which says of `what` how much is needed and how much is free; arrays
        made earlier stay.
        """
        shapes = [shape for layout in layouts for shape in layout.values()]
        sizes = [prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
        had, free = len(self._buffers), self._device.memory().free
        try:
            for nbytes in sizes:
                self._buffers.append(self._device.allocate(nbytes))
        except driver.OutOfMemory:
            self._close(had)
            raise short_of_memory(what, sum(sizes), free) from None
        places = iter(self._buffers[had:])
        return [
            {name: DeviceArray(next(places).address, *spec) for name, spec in layout.items()}
            for layout in layouts
        ]

    def close(self) -> None:
        """Free them; no work on them may be under way."""
        self._close(0)

    def _close(self, first: int) -> None:
        for buffer in self._buffers[first:]:
            buffer.close()
        del self._buffers[first:]


def short_of_memory(what: str, needed: int, free: int) -> OutOfMemory:
    """The error where `needed` bytes of device memory are not to be had."""
    return OutOfMemory(
        f"{what}: {needed / 1e9:.3f} GB of device memory is needed, {free / 1e9:.3f} GB is free"
    )


class Pinned:
    """Host memory that copies go through; it grows to the largest transfer."""

    def __init__(self, device: Device) -> None:
        """None yet."""
        self._device = device
        self._buffer: HostBuffer | None = None

    def send(self, stream: Stream, transfers: Sequence[tuple[Span, NDArray[Any]]]) -> None:
        """Put copies of host arrays to the device on the stream.

        Nothing that was sent or fetched before may still be under way.
        """
        transfers = [(place, values) for place, values in transfers if values.nbytes]
        buffer = self.reserve(sum(_rounded(values.nbytes) for _, values in transfers))
        offset = 0
        for place, values in transfers:
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            buffer.array[offset : offset + raw.size] = raw
            stream.copy(place, Part(buffer.address + offset, raw.size))
            offset += _rounded(raw.size)

    def fetch(self, stream: Stream, sources: Sequence[Span]) -> list[NDArray[np.uint8]]:
        """Wait for the stream, and return the bytes of each source: views until the next call."""
        buffer = self.reserve(sum(_rounded(source.nbytes) for source in sources))
        views, offset = [], 0
        for source in sources:
            stream.copy(Part(buffer.address + offset, source.nbytes), source)
            views.append(buffer.array[offset : offset + source.nbytes])
            offset += _rounded(source.nbytes)
        stream.synchronize()
        return views

    def close(self) -> None:
        """Free it."""
        if self._buffer is not None:
            self._buffer.close()
        self._buffer = None

    def reserve(self, nbytes: int) -> HostBuffer:
        """The memory, of so many bytes at least; taking it anew makes the device wait."""
        nbytes = max(_rounded(nbytes), ALIGNMENT)
        if self._buffer is None or self._buffer.nbytes < nbytes:
            self.close()
            self._buffer = self._device.pinned(nbytes)
        return self._buffer


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

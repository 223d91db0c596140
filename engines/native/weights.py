"""Weights in device memory: streamed from the checkpoint's files, one copy, fixed addresses.

Threads read blocks of the files, bring them into the device's order and leave them in a ring of
pinned buffers, from where they are copied. The files are read, not mapped: one that is cut short
meanwhile is an error with a name, where a mapping would kill the process.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import reading
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.packing import (
    BLOCK,
    Block,
    arrange,
    blocks,
    finite,
    held_as,
    widened,
)
from diffusion_rt.engines.native.plan import Weight
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.kernels.driver import Device, part
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Stream

SLOTS = 6
SLOT_BYTES = 16 << 20
GIVEN = "the values given"
THREADS = 4  # one core reads and arranges a few GB/s, an SSD or the page cache has several times it

Progress = Callable[[int], None]  # called with the number of bytes done since the last call
Read = Callable[[int, memoryview], None]  # (first byte of the tensor, where to put the bytes)


@dataclass(frozen=True, slots=True)
class Task:
    """A block, its weight, and where in a slot its bytes begin."""

    weight: Weight
    block: Block
    start: int


@dataclass(slots=True)
class Batch:
    """Blocks that lie next to each other on the device and are copied at once."""

    offset: int  # of the first byte in the device's buffer
    nbytes: int = 0
    tasks: list[Task] = field(default_factory=list)


class Slot:
    """A pinned buffer of the ring, with what one thread needs to fill it."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.buffer = device.pinned(nbytes)
        self.bytes = self.buffer.array
        self.copied = device.event()  # one never recorded counts as passed
        self._stored = np.zeros(BLOCK, np.uint8)
        self._checked = np.zeros(BLOCK // 4, np.uint8)

    def fill(self, batch: Batch, readers: Mapping[str, Read]) -> None:
        """Read and arrange every block of a batch; BadInput names a tensor with NaN."""
        done = 0
        for task in batch.tasks:
            end = task.start + task.block.nbytes
            self.bytes[done : task.start] = 0
            place, read = self.bytes[task.start : end], readers[task.block.source.location]
            self.fill_block(task.weight, task.block, place, read)
            done = end

    def fill_block(
        self, weight: Weight, block: Block, place: NDArray[np.uint8], read: Read
    ) -> None:
        """Read one block and leave it in `place` as the device wants it."""
        source = block.source
        count = sum(nbytes for _, nbytes in block.reads)
        same = weight.layout == "rows" and weight.dtype == source.dtype
        as_stored = same and count == block.nbytes
        if not as_stored and count > len(self._stored):
            self._stored = np.zeros(count, np.uint8)
        target = place if as_stored else self._stored[:count]
        view, done = target.data, 0
        for first, nbytes in block.reads:
            read(source.offset + first, view[done : done + nbytes])
            done += nbytes
        if not as_stored:
            stored = target.view(held_as(source.dtype)).reshape(block.shape)
            if source.dtype != weight.dtype:
                stored = widened(stored, source.dtype)
            arrange(stored, place.view(held_as(weight.dtype)), weight)
        if not finite(place, weight.dtype, self._checked):
            whole = finite(target, source.dtype, self._checked)
            raise BadInput(
                f"{source.location}: tensor {shown(source.name)} "
                + (f"has numbers too large for {weight.dtype}" if whole else "has NaN or infinity")
                + "; the checkpoint is damaged or not for this precision, download it again"
            )

    def close(self) -> None:
        self.copied.close()
        self.buffer.close()


class Weights:
    """All weights of one graph in one buffer of the device, for as many engines as want them.

    Weights lie in the order of their files, each at a multiple of 256 bytes. Addresses hold until
    `close`, so that captured work stays valid when a tensor is replaced.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        weights: Iterable[Weight],
        constants: Mapping[str, NDArray[Any]],
    ) -> None:
        """Take the memory; `stream` is the one that later work on the weights follows.

        `constants` has the arrays of weights without a source. Raises OutOfMemory (the driver's).
        """
        self._device, self._stream = device, stream
        self._offsets: dict[str, int] = {}
        self._weights: list[Weight] = []
        self._constants: dict[str, Read] = {}
        self._by_tensor: dict[str, list[tuple[Weight, int]]] = {}
        self._staging: Slot | None = None
        self.seconds = 0.0
        """What `stream_from` took."""
        end = 0
        for weight in sorted(weights, key=_place_in_file):
            for source in {source.name: source for source in weight.sources}.values():
                self._by_tensor.setdefault(source.name, []).append((weight, end))
            if not weight.sources:
                weight = _with_constant(weight, constants[weight.name])
                location = weight.sources[0].location
                self._constants[location] = _memory_reader(constants[weight.name])
            self._offsets[weight.name] = end
            self._weights.append(weight)
            end += _rounded(weight.size)
        self.nbytes = end
        self._buffer = device.allocate(max(end, ALIGNMENT))

    def address(self, name: str) -> int:
        """Where a weight of the plan begins; KeyError where the plan has none of that name."""
        return self._buffer.address + self._offsets[name]

    def stream_from(
        self,
        folder: Path,
        *,
        progress: Progress | None = None,
        slots: int = SLOTS,
        slot_bytes: int = SLOT_BYTES,
    ) -> Self:
        """Bring every weight from the safetensors of a model folder; returns when all are there.

        Takes `slots * slot_bytes` of pinned memory while it runs (more for a block that is longer).
        Raises BadInput where a file is cut short or a tensor is not finite.
        """
        started = time.perf_counter()
        batches = list(self._batches(slot_bytes))
        longest = max((batch.nbytes for batch in batches), default=1)
        with ExitStack() as stack:
            readers = dict(self._constants)
            for location in {s.location for w in self._weights for s in w.sources} - readers.keys():
                readers[location] = stack.enter_context(_reader(folder, location))
            self._stream.fill(self._buffer, 0)  # what fills weights up, and gaps between them
            ring = []
            for _ in range(min(slots, len(batches))):
                ring.append(Slot(self._device, longest))
                stack.callback(ring[-1].close)
            stack.callback(self._stream.synchronize)
            pool = stack.enter_context(ThreadPoolExecutor(THREADS, "weights"))
            filling: deque[tuple[Future[None], Slot, Batch]] = deque()
            try:
                for number, batch in enumerate(batches):
                    if len(filling) == len(ring):
                        self._send(*filling.popleft(), progress)
                    slot = ring[number % len(ring)]
                    slot.copied.synchronize()
                    filling.append((pool.submit(slot.fill, batch, readers), slot, batch))
                while filling:
                    self._send(*filling.popleft(), progress)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.seconds = time.perf_counter() - started
        return self

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replace one tensor of the checkpoint in place, in every weight that it is part of.

        `values` has the tensor's shape, as the checkpoint stores it (float32 or float16): a LoRA
        gives the sum of the base and its product. Copied on the weights' own stream, and waited
        for: no other stream may be reading them meanwhile; whatever is enqueued or replayed
        afterwards sees the new values. Raises BadInput where the tensor is unknown, of another
        shape, or not finite in the weight's dtype; the device then keeps what it had.
        """
        found = self._by_tensor.get(name)
        if found is None:
            raise BadInput(f"weight {shown(name)} is none of this graph's; look at its names")
        wanted = next(s.shape for w, _ in found for s in w.sources if s.name == name)
        if values.shape != wanted or values.dtype not in (np.float32, np.float16):
            raise BadInput(
                f"weight {shown(name)}: {values.dtype} {list(values.shape)}, "
                f"wants float32 or float16 {list(wanted)}"
            )
        read = _memory_reader(values)
        given = ExternalTensor(name, str(values.dtype), wanted, GIVEN, 0, values.nbytes)
        parts = [
            (replaced, block, start + block.offset)
            for replaced, start in (
                (replace(w, sources=tuple(given if s.name == name else s for s in w.sources)), at)
                for w, at in found
            )
            for block in blocks(replaced)
            if block.source is given
        ]
        slot = self._staging_of(sum(_rounded(block.nbytes) for _, block, _ in parts))
        copies, end = [], 0
        for weight, block, offset in parts:  # all of them, before one is copied
            slot.fill_block(weight, block, slot.bytes[end : end + block.nbytes], read)
            copies.append((offset, part(slot.buffer, end, block.nbytes)))
            end += _rounded(block.nbytes)
        for offset, staged in copies:
            self._stream.copy(part(self._buffer, offset, staged.nbytes), staged)
        self._stream.synchronize()

    def close(self) -> None:
        """Give the memory back; nothing enqueued may still use it."""
        if self._staging is not None:
            self._staging.close()
        self._staging = None
        self._buffer.close()

    def _staging_of(self, nbytes: int) -> Slot:
        """Pinned memory for `write`, kept for the next."""
        if self._staging is None or self._staging.buffer.nbytes < nbytes:
            if self._staging is not None:
                self._staging.close()
            self._staging = None
            self._staging = Slot(self._device, nbytes)
        return self._staging

    def _batches(self, most: int) -> Iterator[Batch]:
        batch = Batch(0)
        for weight in self._weights:
            start = self._offsets[weight.name]
            for block in blocks(weight):
                first = start + block.offset
                if batch.tasks and first + block.nbytes - batch.offset > most:
                    yield batch
                    batch = Batch(first)
                batch.tasks.append(Task(weight, block, first - batch.offset))
                batch.nbytes = first + block.nbytes - batch.offset
        if batch.tasks:
            yield batch

    def _send(
        self, filled: Future[None], slot: Slot, batch: Batch, progress: Progress | None
    ) -> None:
        filled.result()
        target = part(self._buffer, batch.offset, batch.nbytes)
        self._stream.copy(target, part(slot.buffer, 0, batch.nbytes))
        self._stream.record(slot.copied)
        if progress is not None:
            progress(sum(task.block.nbytes for task in batch.tasks))


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _place_in_file(weight: Weight) -> tuple[str, int]:
    return (weight.sources[0].location, weight.sources[0].offset) if weight.sources else ("", 0)


def _with_constant(weight: Weight, values: NDArray[Any]) -> Weight:
    """A weight whose array lies in the plan, as if it lay in a file of its own."""
    location = f"constant {weight.name}"
    source = ExternalTensor(
        weight.name, str(values.dtype), values.shape, location, 0, values.nbytes
    )
    return replace(weight, sources=(source,))


@contextmanager
def _reader(folder: Path, location: str) -> Iterator[Read]:
    """Reads of one file, from any thread."""
    path = folder / location
    with reading(path, follow_links=False) as file:
        descriptor = file.fileno()
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

        def read(first: int, view: memoryview) -> None:
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], first + done)
                if not count:
                    raise BadInput(
                        f"{path}: ends {len(view) - done} bytes early; download or export it again"
                    )
                done += count

        yield read


def _memory_reader(values: NDArray[Any]) -> Read:
    stored = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data

    def read(first: int, view: memoryview) -> None:
        view[:] = stored[first : first + len(view)]

    return read

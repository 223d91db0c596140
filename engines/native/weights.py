"""Weights in device memory: streamed from files, one copy, fixed addresses.

Threads read the checkpoint's files, bring what they read into the device's order and leave it in a
ring of pinned buffers, from where it is copied; of a packed file (`packed.py`) the order is right
as it is. Files are read, not mapped: one that is cut short meanwhile is an error with a name, where
a mapping would kill the process.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.arrangement import (
    GIVEN,
    Arrangement,
    Batch,
    Filler,
    Read,
    Task,
    file_reader,
    memory_reader,
    rounded,
)
from diffusion_rt.engines.native.packed import Packed
from diffusion_rt.engines.native.plan import Source, Weight
from diffusion_rt.kernels.driver import Device, part
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Stream

SLOTS = 6
SLOT_BYTES = 16 << 20
THREADS = 4  # one core reads and arranges a few GB/s, an SSD or the page cache has several times it

Progress = Callable[[int], None]  # called with the number of bytes done since the last call


class Slot:
    """A pinned buffer of the ring, with what one thread needs to fill it."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.buffer = device.pinned(nbytes)
        self.bytes = self.buffer.array
        self.copied = device.event()  # one never recorded counts as passed
        self.filler = Filler()

    def close(self) -> None:
        self.copied.close()
        self.buffer.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of the device's buffer, and what brings them into a slot."""

    offset: int
    nbytes: int
    told: int  # bytes of it that progress counts: those of weights
    fill: Callable[[Slot], None]


class Weights:
    """All weights of one graph in one buffer of the device, for as many engines as want them.

    They lie there as in their `Arrangement`. Addresses hold until `close`, so that captured work
    stays valid when a tensor is replaced.
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
        self._staging: Slot | None = None
        self.arrangement = Arrangement(weights, constants)
        self.seconds = 0.0
        """What streaming took."""
        self.nbytes = self.arrangement.nbytes
        self._buffer = device.allocate(max(self.nbytes, ALIGNMENT))

    def address(self, name: str) -> int:
        """Where a weight of the plan begins; KeyError where the plan has none of that name."""
        return self._buffer.address + self.arrangement.offsets[name]

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
        with self.arrangement.readers(folder) as readers:

            def piece(batch: Batch) -> Piece:
                told = sum(task.block.nbytes for task in batch.tasks)
                return Piece(
                    batch.offset,
                    batch.nbytes,
                    told,
                    lambda slot: slot.filler.fill(batch, slot.bytes, readers),
                )

            batches = self.arrangement.batches(slot_bytes)
            self._bring([piece(batch) for batch in batches], progress, slots)
        return self

    def stream_packed(
        self, packed: Packed, *, progress: Progress | None = None, slots: int = SLOTS
    ) -> Self:
        """Bring every weight from a packed file; returns when all are there.

        Raises BadInput where a piece of it is not as it was written: the weights are then to be
        streamed once more, from elsewhere.
        """

        def piece(number: int, offset: int, nbytes: int) -> Piece:
            return Piece(
                offset, nbytes, nbytes, lambda slot: packed.read(number, slot.bytes[:nbytes])
            )

        pieces = [piece(number, *place) for number, place in enumerate(packed.pieces)]
        self._bring(pieces, progress, slots)
        return self

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replace one tensor of the checkpoint in place, in every weight that it is part of.

        `values` has the tensor's shape, as the checkpoint stores it (float32 or float16): a LoRA
        gives the sum of the base and its product. Copied on the weights' own stream, and waited
        for: no other stream may be reading them meanwhile; whatever is enqueued or replayed
        afterwards sees the new values. Raises BadInput where the tensor is unknown, of another
        shape, or not finite in the weight's dtype; the device then keeps what it had.
        """
        source = self._source(name)
        check_values(source, values)
        given = Source(name, str(values.dtype), source.shape, GIVEN, 0, values.nbytes)
        self._put(list(self.arrangement.parts(name, given)), memory_reader(values))

    def restore(self, name: str, folder: Path) -> None:
        """Undo `write`: the tensor as the checkpoint in a model folder has it, copied likewise.

        Raises BadInput where the tensor is unknown or its file is cut short.
        """
        with file_reader(folder / self._source(name).location) as read:
            self._put(list(self.arrangement.parts(name)), read)

    def close(self) -> None:
        """Give the memory back; nothing enqueued may still use it."""
        if self._staging is not None:
            self._staging.close()
        self._staging = None
        self._buffer.close()

    def _source(self, name: str) -> Source:
        source = self.arrangement.source(name)
        if source is None:
            raise BadInput(f"weight {shown(name)} is none of this graph's; look at its names")
        return source

    def _put(self, parts: Sequence[tuple[Task, int]], read: Read) -> None:
        """Bring blocks to their offsets, all of them read before one is copied."""
        slot = self._staging_of(sum(rounded(task.block.nbytes) for task, _ in parts))
        copies, end = [], 0
        for task, offset in parts:
            nbytes = task.block.nbytes
            slot.filler.fill_block(task, slot.bytes[end : end + nbytes], read)
            copies.append((offset, part(slot.buffer, end, nbytes)))
            end += rounded(nbytes)
        for offset, staged in copies:
            self._stream.copy(part(self._buffer, offset, staged.nbytes), staged)
        self._stream.synchronize()

    def _staging_of(self, nbytes: int) -> Slot:
        """Pinned memory for `write`, kept for the next."""
        if self._staging is None or self._staging.buffer.nbytes < nbytes:
            if self._staging is not None:
                self._staging.close()
            self._staging = None
            self._staging = Slot(self._device, nbytes)
        return self._staging

    def _bring(self, pieces: Sequence[Piece], progress: Progress | None, slots: int) -> None:
        """Fill the buffer from pieces, through the ring; zeros where there is none."""
        started = time.perf_counter()
        longest = max((piece.nbytes for piece in pieces), default=1)
        with ExitStack() as stack:
            self._stream.fill(self._buffer, 0)  # what fills weights up, and gaps between them
            ring = []
            for _ in range(min(slots, len(pieces))):
                ring.append(Slot(self._device, longest))
                stack.callback(ring[-1].close)
            stack.callback(self._stream.synchronize)
            pool = stack.enter_context(ThreadPoolExecutor(THREADS, "weights"))
            filling: deque[tuple[Future[None], Slot, Piece]] = deque()
            try:
                for number, piece in enumerate(pieces):
                    if len(filling) == len(ring):
                        self._send(*filling.popleft(), progress)
                    slot = ring[number % len(ring)]
                    slot.copied.synchronize()
                    filling.append((pool.submit(piece.fill, slot), slot, piece))
                while filling:
                    self._send(*filling.popleft(), progress)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.seconds = time.perf_counter() - started

    def _send(
        self, filled: Future[None], slot: Slot, piece: Piece, progress: Progress | None
    ) -> None:
        filled.result()
        target = part(self._buffer, piece.offset, piece.nbytes)
        self._stream.copy(target, part(slot.buffer, 0, piece.nbytes))
        self._stream.record(slot.copied)
        if progress is not None:
            progress(piece.told)


def check_values(source: Source, values: NDArray[Any]) -> None:
    """BadInput where an array cannot take the place of a stored tensor."""
    if values.shape != source.shape or values.dtype not in (np.float32, np.float16):
        raise BadInput(
            f"weight {shown(source.name)}: {values.dtype} {list(values.shape)}, "
            f"wants float32 or float16 {list(source.shape)}"
        )

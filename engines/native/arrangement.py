"""Where the weights of a graph lie in one buffer, and how its bytes are made of a checkpoint's."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from diffusion_rt.engines.native.plan import Source, Weight
from diffusion_rt.kernels.driver.interface import ALIGNMENT

GIVEN = "the values given"  # in place of a file, where there is none

Read = Callable[[int, memoryview], None]  # (first byte of the file, where to put the bytes)


@dataclass(frozen=True, slots=True)
class Task:
    """A block, its weight, and where in a batch its bytes begin."""

    weight: Weight
    block: Block
    start: int


@dataclass(slots=True)
class Batch:
    """Blocks that lie next to each other in the buffer and are made at once."""

    offset: int  # of the first byte in the buffer
    nbytes: int = 0
    tasks: list[Task] = field(default_factory=list)


class Arrangement:
    """All weights of one graph in the order of their files, each at a multiple of 256 bytes."""

    def __init__(self, weights: Iterable[Weight], constants: Mapping[str, NDArray[Any]]) -> None:
        """`constants` has the arrays of weights without a source."""
        self.weights: list[Weight] = []
        """In order; one without a source has one here, as if its array lay in a file."""
        self.offsets: dict[str, int] = {}
        """Where each weight begins."""
        self.constants: dict[str, NDArray[Any]] = {}
        """The arrays, by the location that stands for a file's."""
        self.tensors: dict[str, list[tuple[Weight, int]]] = {}
        """For each tensor of the checkpoint the weights that it is part of, and their offsets."""
        end = 0
        for weight in sorted(weights, key=_place_in_file):
            for name in dict.fromkeys(source.name for source in weight.sources):
                self.tensors.setdefault(name, []).append((weight, end))
            if not weight.sources:
                values = constants[weight.name]
                weight = _with_constant(weight, values)
                self.constants[weight.sources[0].location] = values
            self.offsets[weight.name] = end
            self.weights.append(weight)
            end += rounded(weight.size)
        self.nbytes = end
        """Of the buffer, a multiple of 256."""

    def source(self, tensor: str) -> Source | None:
        """Where a tensor of the checkpoint is stored; None where no weight has it."""
        sources = (s for weight, _ in self.tensors.get(tensor, ()) for s in weight.sources)
        return next((source for source in sources if source.name == tensor), None)

    @property
    def locations(self) -> list[str]:
        """The checkpoint's files that are read."""
        found = {source.location for weight in self.weights for source in weight.sources}
        return sorted(found - self.constants.keys())

    @contextmanager
    def readers(self, folder: Path) -> Iterator[Mapping[str, Read]]:
        """Reads of every file of a model folder, and of the constants, from any thread."""
        with ExitStack() as stack:
            found = {place: memory_reader(values) for place, values in self.constants.items()}
            for location in self.locations:
                found[location] = stack.enter_context(file_reader(folder / location))
            yield found

    def batches(self, most: int) -> Iterator[Batch]:
        """All blocks, in order, by so many bytes; a block that is longer comes alone."""
        batch = Batch(0)
        for weight in self.weights:
            start = self.offsets[weight.name]
            for block in blocks(weight):
                first = start + block.offset
                if batch.tasks and first + block.nbytes - batch.offset > most:
                    yield batch
                    batch = Batch(first)
                batch.tasks.append(Task(weight, block, first - batch.offset))
                batch.nbytes = first + block.nbytes - batch.offset
        if batch.tasks:
            yield batch

    def parts(self, tensor: str, given: Source | None = None) -> Iterator[tuple[Task, int]]:
        """Every block of one tensor, and its offset in the buffer; read from `given` if need be."""
        for weight, start in self.tensors[tensor]:
            if given is not None:
                sources = (given if s.name == tensor else s for s in weight.sources)
                weight = replace(weight, sources=tuple(sources))
            for block in blocks(weight):
                if block.source.name == tensor:
                    yield Task(weight, block, 0), start + block.offset


class Filler:
    """Reads blocks and arranges them; has what one thread needs for it."""

    def __init__(self) -> None:
        """With memory for blocks of the usual size."""
        self._stored = np.zeros(BLOCK, np.uint8)
        self._checked = np.zeros(BLOCK // 4, np.uint8)

    def fill(self, batch: Batch, room: NDArray[np.uint8], readers: Mapping[str, Read]) -> None:
        """Leave every block of a batch in `room`; BadInput names a tensor with NaN."""
        done = 0
        for task in batch.tasks:
            end = task.start + task.block.nbytes
            room[done : task.start] = 0
            self.fill_block(task, room[task.start : end], readers[task.block.source.location])
            done = end

    def fill_block(self, task: Task, place: NDArray[np.uint8], read: Read) -> None:
        """Read one block and leave it in `place` as the device wants it."""
        weight, block, source = task.weight, task.block, task.block.source
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
            again = "the checkpoint is damaged or not for this precision, download it again"
            raise BadInput(
                f"{source.location}: tensor {shown(source.name)} "
                + (f"has numbers too large for {weight.dtype}" if whole else "has NaN or infinity")
                + ("" if source.location == GIVEN else f"; {again}")
            )


def rounded(nbytes: int) -> int:
    """Up to where the next weight may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _place_in_file(weight: Weight) -> tuple[str, int]:
    return (weight.sources[0].location, weight.sources[0].offset) if weight.sources else ("", 0)


def _with_constant(weight: Weight, values: NDArray[Any]) -> Weight:
    """A weight whose array lies in the plan, as if it lay in a file of its own."""
    location = f"constant {weight.name}"
    source = Source(weight.name, str(values.dtype), values.shape, location, 0, values.nbytes)
    return replace(weight, sources=(source,))


@contextmanager
def file_reader(path: Path) -> Iterator[Read]:
    """Reads of one file, from any thread."""
    with reading(path, follow_links=False) as file:
        yield reads_of(file, path)


def reads_of(file: io.FileIO, path: Path) -> Read:
    """Reads of an open file, from any thread; BadInput where it ends before."""
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

    return read


def memory_reader(values: NDArray[Any]) -> Read:
    """Reads of an array, as if it were a file."""
    stored = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data

    def read(first: int, view: memoryview) -> None:
        view[:] = stored[first : first + len(view)]

    return read

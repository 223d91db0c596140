"""Weights where TensorRT can read them: the mapped checkpoint, or a cast copy in a mapped file.

No weight is copied into memory. What is stored in another type than the graph wants is cast, block
by block, into a file on disk, which is mapped like the checkpoint: its pages are the system's to
write back and drop. A build's file has no name and goes with it; what a stripped plan wants at
every start is kept.
"""

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import reading, remove_partials, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.typed_json import encode

BLOCK = 1 << 20  # elements cast at a time
_ALIGNMENT = 256
_DIGEST = hashlib.sha256().digest_size

_HELD = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer of the network: its type there, and its bytes in the model folder."""

    name: str
    dtype: str  # as NumPy spells it, or bfloat16
    source: ExternalTensor  # of the same shape, perhaps of another type
    location: str  # of the file, relative to the model folder

    @property
    def nbytes(self) -> int:
        """Its size in the network."""
        if self.dtype == self.source.dtype:
            return self.source.length
        return prod(self.source.shape) * np.dtype(_HELD[self.dtype]).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class MappedWeight:
    """A weight in host memory, which stays mapped as long as this exists."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # its bytes, read-only

    @property
    def address(self) -> int:
        """Where its bytes are: a multiple of the size of an element."""
        return int(self.data.ctypes.data)


def in_memory(name: str, dtype: str, content: bytes) -> MappedWeight:
    """Numbers that are no file's, as a weight."""
    data = np.frombuffer(content, np.uint8) if content else np.zeros(0, np.uint8)
    return MappedWeight(name, dtype, (len(content) // item_size(dtype),), data)


def map_weights(
    model: Path, weights: Sequence[Weight], scratch: Path, *, kept: str = ""
) -> Mapping[str, MappedWeight]:
    """All weights at their addresses.

    `model` is the model's folder; `scratch` is one with room for those that must be cast. Where
    `kept` names them (see `engines/kept.py`), they stay there under it for the next time. Raises
    BadInput where a file is missing or shorter than the weights in it, or the disk is full.
    """
    locations = dict.fromkeys(weight.location for weight in weights)
    files = {location: _map(model / location) for location in locations}
    found: dict[str, MappedWeight] = {}
    casts: list[tuple[Weight, NDArray[np.uint8]]] = []
    for weight in weights:
        source = weight.source
        data = files[weight.location][source.offset : source.offset + source.length]
        if data.nbytes != source.length:
            raise BadInput(
                f"{model / weight.location}: ends within {weight.name}; restore it, or export the "
                "model again"
            )
        if weight.dtype != source.dtype or data.ctypes.data % item_size(weight.dtype):
            casts.append((weight, data))
        else:
            found[weight.name] = MappedWeight(weight.name, weight.dtype, source.shape, data)
    return found | _cast_all(casts, scratch, kept)


def digest_of(weights: Sequence[Weight], hashes: Mapping[str, str]) -> str:
    """Digits for the casts of some weights; of another checkpoint, or in other types, others.

    `hashes` has the sha256 of each file that they lie in.
    """
    files = {weight.location: hashes[weight.location] for weight in weights}
    text = json.dumps([encode(weights), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def item_size(dtype: str) -> int:
    """Bytes of one number of a type."""
    return np.dtype(_HELD.get(dtype, dtype)).itemsize


def held(dtype: str) -> str:
    """The NumPy type whose elements stand for those of a floating type."""
    return _HELD[dtype]


def cast(values: NDArray[Any], stored: str, dtype: str) -> NDArray[Any]:
    """Numbers of one floating type as another, rounded to nearest, ties to even.

    bfloat16 is held as uint16. A number beyond the range of float16 becomes infinite.
    """
    if stored == dtype:
        return values
    if stored == "bfloat16":
        wide = (values.astype(np.uint32) << 16).view(np.float32)
        return cast(wide, "float32", dtype)
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40  # of a NaN, whose payload must not round to infinity
        return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(_HELD[dtype])


def _map(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file; the array keeps them mapped."""
    with reading(path, follow_links=False) as file:
        return _mapped(file.fileno())


def _mapped(descriptor: int) -> NDArray[np.uint8]:
    if not os.fstat(descriptor).st_size:  # an empty file cannot be mapped
        return np.zeros(0, np.uint8)
    return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)


def _cast_all(
    casts: Sequence[tuple[Weight, NDArray[np.uint8]]], scratch: Path, kept: str
) -> dict[str, MappedWeight]:
    places, end = [], 0
    for weight, _ in casts:
        places.append(end)
        end += weight.nbytes + -weight.nbytes % _ALIGNMENT
    if not end:
        return {}
    if kept:
        whole = _kept(scratch / kept, casts, end)
    else:
        with tempfile.TemporaryFile(dir=scratch) as file:
            _write(file, casts, end, scratch)
            whole = _mapped(file.fileno())
    return {
        weight.name: MappedWeight(
            weight.name, weight.dtype, weight.source.shape, whole[place : place + weight.nbytes]
        )
        for (weight, _), place in zip(casts, places, strict=True)
    }


def _kept(
    path: Path, casts: Sequence[tuple[Weight, NDArray[np.uint8]]], end: int
) -> NDArray[np.uint8]:
    """The casts that are kept under a name, with their sha256 behind them; made where missing."""
    try:
        whole = _map(path)
        if whole.nbytes == end + _DIGEST and _digest(whole[:end]) == whole[end:].tobytes():
            return whole
    except BadInput:  # there is no such file, or none that can be read
        pass
    remove_partials(path.parent)
    with writing(path) as file:
        file.write(_write(file, casts, end, path.parent))
    return _map(path)


def _write(
    file: BinaryIO, casts: Sequence[tuple[Weight, NDArray[np.uint8]]], end: int, folder: Path
) -> bytes:
    """Write casts one behind the other, each at a multiple of 256 bytes; their sha256."""
    digest = hashlib.sha256()
    try:
        os.posix_fallocate(file.fileno(), 0, end)  # to hear of a full disk before the work is done
        for weight, data in casts:
            gap = memoryview(bytes(-weight.nbytes % _ALIGNMENT))
            for block in chain(_cast_blocks(weight, data), (gap,)):
                file.write(block)
                digest.update(block)
        file.flush()
    except OSError as error:
        raise BadInput(
            f"{folder}: {end / 1e9:.1f} GB for weights in another type cannot be had "
            f"({(error.strerror or 'no reason given').lower()}); make room there"
        ) from None
    return digest.digest()


def _cast_blocks(weight: Weight, data: NDArray[np.uint8]) -> Iterator[memoryview]:
    """The bytes of one weight in the type that is wanted, piece by piece."""
    stored, dtype = weight.source.dtype, weight.dtype
    if stored == dtype:  # only out of line in its file
        yield data.data
        return
    if stored not in _HELD:
        raise BadInput(f"weight {weight.name}: stored as {stored}, wants {', '.join(_HELD)}")
    item = item_size(stored)
    for start in range(0, data.nbytes, BLOCK * item):
        block = data[start : start + BLOCK * item].copy().view(_HELD[stored])
        narrow = cast(block, stored, dtype)
        if (
            not np.isfinite(cast(narrow, dtype, "float32")).all()
            and np.isfinite(cast(block, stored, "float32")).all()
        ):
            raise BadInput(
                f"weight {weight.name}: a number of it is out of {dtype}'s range; build with "
                "--precision float32"
            )
        yield narrow.view(np.uint8).data


def _digest(data: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(data.data).digest()

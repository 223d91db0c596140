"""Weights where TensorRT can read them: the mapped checkpoint, or a cast copy in a mapped file.

No weight is copied into memory. What is stored in another type than the graph wants is cast, block
by block, into a nameless file on disk, which is mapped like the checkpoint: its pages are the
system's to write back and drop.
"""

import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import reading
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.onnx_file import ExternalTensor

BLOCK = 1 << 20  # elements cast at a time
_ALIGNMENT = 256

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


def map_weights(
    model: Path, weights: Sequence[Weight], scratch: Path
) -> Mapping[str, MappedWeight]:
    """All weights at their addresses.

    `model` is the model's folder; `scratch` is one with room for those that must be cast. Raises
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
        item = np.dtype(_HELD.get(weight.dtype, weight.dtype)).itemsize
        if weight.dtype != source.dtype or data.ctypes.data % item:
            casts.append((weight, data))
        else:
            found[weight.name] = MappedWeight(weight.name, weight.dtype, source.shape, data)
    return found | _cast_all(casts, scratch)


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
        if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            return np.zeros(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _cast_all(
    casts: Sequence[tuple[Weight, NDArray[np.uint8]]], scratch: Path
) -> dict[str, MappedWeight]:
    places, end = [], 0
    for weight, _ in casts:
        places.append(end)
        end += weight.nbytes + -weight.nbytes % _ALIGNMENT
    if not end:
        return {}
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            # The room is taken now: a disk that is full when a page is written ends the process.
            os.posix_fallocate(file.fileno(), 0, end)
            whole = np.frombuffer(mmap.mmap(file.fileno(), end), np.uint8)
    except OSError as error:
        raise BadInput(
            f"{scratch}: {end / 1e9:.1f} GB for weights in another type cannot be had "
            f"({(error.strerror or 'no reason given').lower()}); make room there"
        ) from None
    found = {}
    for (weight, data), place in zip(casts, places, strict=True):
        target = whole[place : place + weight.nbytes]
        _cast_into(target, data, weight)
        target.flags.writeable = False
        found[weight.name] = MappedWeight(weight.name, weight.dtype, weight.source.shape, target)
    return found


def _cast_into(target: NDArray[np.uint8], data: NDArray[np.uint8], weight: Weight) -> None:
    stored, dtype = weight.source.dtype, weight.dtype
    if stored == dtype:  # only out of line in its file
        target[...] = data
        return
    if stored not in _HELD:
        raise BadInput(f"weight {weight.name}: stored as {stored}, wants {', '.join(_HELD)}")
    item, wide = np.dtype(_HELD[stored]).itemsize, np.dtype(_HELD[dtype]).itemsize
    for start in range(0, data.nbytes // item, BLOCK):
        block = data[start * item : (start + BLOCK) * item].copy().view(_HELD[stored])
        narrow = cast(block, stored, dtype)
        target[start * wide : (start + len(block)) * wide] = narrow.view(np.uint8)
        if (
            not np.isfinite(cast(narrow, dtype, "float32")).all()
            and np.isfinite(cast(block, stored, "float32")).all()
        ):
            raise BadInput(
                f"weight {weight.name}: a number of it is out of {dtype}'s range; build with "
                "--precision float32"
            )

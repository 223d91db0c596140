"""How a weight lies in its file, and how the device wants it: cut into blocks, cast, arranged.

A block is so small that reading, casting and arranging it stay in a core's cache, so that a weight
passes through memory once. bfloat16, which NumPy lacks, is held as uint16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.plan import Source, Weight
from diffusion_rt.kernels.conv import TAPS, doubled_filters

VERSION = 1  # of the bytes that are made here; one more wherever these change
BLOCK = 1 << 20  # bytes of a block, about; more where one row is longer
INTERLEAVED = 8  # rows of values, then as many of gates: the order of the GEGLU product

_HELD: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
    "int32": np.int32,
}
# The bits of an exponent: a number that has them all is NaN or infinite.
_EXPONENT: dict[str, tuple[Any, int]] = {
    "float32": (np.uint32, 0x7F80_0000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one stored tensor, and where they go."""

    source: Source
    reads: tuple[tuple[int, int], ...]  # (first byte, bytes) in the tensor, one after the other
    shape: tuple[int, ...]  # of the elements read
    offset: int  # in the weight's own bytes
    nbytes: int


def held_as(dtype: str) -> Any:
    """The NumPy type whose elements stand for a dtype's; KeyError where there is none."""
    return _HELD[dtype]


def item_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return int(np.dtype(_HELD[dtype]).itemsize)


def blocks(weight: Weight) -> Iterator[Block]:
    """A weight cut into blocks, in the order of its bytes on the device.

    Zeros that fill the weight up behind its last row are in none. Raises BadInput where the stored
    tensors do not make up the weight.
    """
    rows = 0
    for source in weight.sources:
        shape = _laid_out(source.shape, weight)
        fits = len(shape) == len(weight.shape) and all(map(int.__le__, shape[1:], weight.shape[1:]))
        if not fits or rows + shape[0] > weight.shape[0]:
            raise BadInput(
                f"weight {weight.name}: {shown(source.name)} {list(source.shape)} as "
                f"{weight.layout} does not fit {list(weight.shape)}; export the model again"
            )
        yield from _blocks_of(source, weight, rows)
        rows += shape[0]


def _laid_out(stored: tuple[int, ...], weight: Weight) -> tuple[int, ...]:
    """The shape a stored tensor takes."""
    if weight.layout == "filters" and len(stored) == 4:
        return (stored[0], *stored[2:], stored[1])
    if weight.layout == "doubled":
        return (stored[0], TAPS, stored[1]) if stored[2:] == (3, 3) else ()
    if weight.layout == "geglu" and stored[:1] and stored[0] % (2 * INTERLEAVED):
        return ()
    if weight.layout == "transposed":
        return stored[::-1] if len(stored) == 2 else ()
    return stored


def _blocks_of(source: Source, weight: Weight, row: int) -> Iterator[Block]:
    """The blocks of one source, whose first row on the device is `row`."""
    stored = prod(source.shape[1:]) * item_bytes(source.dtype)
    made = prod(weight.shape[1:]) * item_bytes(weight.dtype)
    if weight.layout == "transposed":
        whole = (0, source.shape[0] * stored)
        yield Block(source, (whole,), source.shape, row * made, source.shape[1] * made)
        return
    halves = 2 if weight.layout == "geglu" else 1
    rows = source.shape[0] // halves
    step = max(1, BLOCK // max(stored * halves, 1))
    if halves == 2:
        step = -(-step // INTERLEAVED) * INTERLEAVED
    for first in range(0, rows, step):
        count = min(step, rows - first)
        reads = tuple(((first + half * rows) * stored, count * stored) for half in range(halves))
        shape = (halves * count, *source.shape[1:])
        yield Block(source, reads, shape, (row + halves * first) * made, halves * count * made)


def arrange(stored: NDArray[Any], made: NDArray[Any], weight: Weight) -> None:
    """Write a block's elements into its flat place in the order the device wants, casting.

    `stored` is as `Block.shape` says, `made` has the weight's dtype. A number too large for it
    becomes infinite.
    """
    if weight.layout == "filters":
        stored = np.moveaxis(stored, 1, -1)  # [rows, kh, kw, channels]
    elif weight.layout == "doubled":
        if stored.dtype == np.uint16:
            stored = widened(stored, "bfloat16")
        stored = doubled_filters(np.moveaxis(stored, 1, -1))
    elif weight.layout == "transposed":
        stored = stored.T
    elif weight.layout == "geglu":
        pairs = stored.reshape(2, -1, INTERLEAVED, *stored.shape[1:]).swapaxes(0, 1)
        made = made.reshape(*pairs.shape[:3], *weight.shape[1:])
        _assign(made, pairs, weight.dtype)
        return
    _assign(made.reshape(len(stored), *weight.shape[1:]), stored, weight.dtype)


def widened(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored elements as NumPy can cast them: bfloat16 becomes float32."""
    if dtype != "bfloat16":
        return stored
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each number, ties to even, as its bits; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))
    quiet = (bits & 0x7FFF_FFFF) > 0x7F80_0000
    return np.where(quiet, (bits >> 16) | 0x40, rounded >> 16).astype(np.uint16)


def finite(made: NDArray[Any], dtype: str, scratch: NDArray[np.uint8]) -> bool:
    """Whether all elements are finite; `scratch` is written over, in cache if it is small."""
    if dtype not in _EXPONENT:
        return True
    kind, mask = _EXPONENT[dtype]
    bits = made.reshape(-1).view(kind)
    room = scratch.view(kind)
    for first in range(0, len(bits), len(room)):
        part = bits[first : first + len(room)]
        np.bitwise_and(part, kind(mask), out=room[: len(part)])
        if room[: len(part)].max() == mask:
            return False
    return True


def _assign(place: NDArray[Any], values: NDArray[Any], dtype: str) -> None:
    """Cast into the first elements of each axis; the rest becomes zeros."""
    if place.shape != values.shape:
        place[...] = 0
        place = place[tuple(map(slice, values.shape))]
    if dtype == "bfloat16" and values.dtype != np.uint16:
        place[...] = to_bfloat16(values)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # told by `finite`, with a name
            place[...] = values

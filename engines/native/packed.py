"""Packed files: the bytes of a graph's weights as they lie on the device, to be read in one go.

    offset  bytes
         0      8  b"DRT-WGTS"
         8     32  sha256 of the rest of the head
        40     32  key: a sha256 of all that the bytes depend on
        72      8  bytes of the weights, little-endian
        80     16  of each piece of 16 MiB the check: 8 bytes of `sum`, 8 of `pages`
                   zeros to the next multiple of 4096
                …  the weights, to the end of the file

Nothing in it depends on the chip: a plan has the same weights on each. It is data, and what reads
it trusts it as far as the safetensors beside it.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import Progress, reading, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import packing
from diffusion_rt.engines.native.arrangement import Arrangement, Filler, Read, reads_of
from diffusion_rt.engines.typed_json import encode

MAGIC = b"DRT-WGTS"
VERSION = 1  # of this layout; that of the bytes is `packing.VERSION`
PIECE = 16 << 20
PAGE = 4096

_CHECK = np.dtype([("sum", "<u8"), ("pages", "<u8")])
_FIXED = len(MAGIC) + 32 + 32 + 8


def key_of(arrangement: Arrangement, hashes: Mapping[str, str]) -> bytes:
    """A hash of all that the packed bytes depend on.

    `hashes` has the sha256 of the checkpoint's files, as the manifest says.
    """
    constants = {
        place: hashlib.sha256(values.tobytes()).hexdigest()
        for place, values in arrangement.constants.items()
    }
    depends = {
        "versions": [VERSION, packing.VERSION],
        "weights": encode(arrangement.weights),
        "offsets": arrangement.offsets,
        "constants": constants,
        "files": {location: hashes[location] for location in arrangement.locations},
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).digest()


def check_of(data: NDArray[np.uint8]) -> tuple[int, int]:
    """What tells whether a piece is as it was: the sum of its words, and a CRC of each page's sum.

    The sum differs wherever one word does; with the CRC, pages that have changed places are found
    too. On one core it takes 30 GB/s, where a CRC of all bytes takes 3 (AMD EPYC).
    """
    words = data.view("<u8")
    sums = np.add.reduceat(words, np.arange(0, len(words), PAGE // 8))
    return int(np.add.reduce(sums)), zlib.crc32(sums.data)


@dataclass(frozen=True, slots=True)
class Packed:
    """An open file whose head was checked."""

    path: Path
    nbytes: int  # of the weights
    _checks: NDArray[np.void]
    _read: Read

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Offset and bytes of each, in the device's buffer."""
        return _pieces(self.nbytes)

    def read(self, number: int, place: NDArray[np.uint8]) -> None:
        """Bring one piece to `place`, which has its length. Raises BadInput where it is damaged."""
        offset = number * PIECE
        try:
            self._read(_head_bytes(self.nbytes) + offset, place.data)
        except OSError as error:
            raise BadInput(f"{self.path}: {error.strerror or error}") from None
        if check_of(place) != tuple(self._checks[number].tolist()):
            raise BadInput(f"{self.path}: damaged {offset} bytes into the weights")


@contextmanager
def open_packed(path: Path, key: bytes, nbytes: int) -> Iterator[Packed]:
    """A packed file of so many bytes of weights, open for the block.

    Raises BadInput where there is none, where it is for other weights, cut short or damaged at its
    head. What follows the head is checked as it is read.
    """
    with reading(path, follow_links=False) as file:
        found, size = os.fstat(file.fileno()).st_size, _head_bytes(nbytes) + nbytes
        try:
            head = file.read(_head_bytes(nbytes)) if found >= _FIXED else b""
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from None
        if not head.startswith(MAGIC):
            raise BadInput(f"{path}: no packed weights")
        if head[40:72] != key:
            raise BadInput(f"{path}: of another checkpoint, export or diffusion-rt")
        if found != size:
            raise BadInput(f"{path}: {found} bytes long, wants {size}")
        if head[8:40] != hashlib.sha256(head[40:]).digest() or head[72:80] != _number(nbytes):
            raise BadInput(f"{path}: damaged at its head")
        checks = np.frombuffer(head, _CHECK, len(_pieces(nbytes)), _FIXED)
        yield Packed(path, nbytes, checks, reads_of(file, path))


def write_packed(
    path: Path,
    arrangement: Arrangement,
    key: bytes,
    folder: Path,
    progress: Progress | None = None,
) -> int:
    """Pack the weights of a model folder, whole or not at all; the bytes of the file.

    Raises BadInput where a file of the checkpoint is cut short, a tensor is not finite, or the disk
    has no room for it.
    """
    nbytes = arrangement.nbytes
    head_bytes = _head_bytes(nbytes)
    checks = np.zeros(len(_pieces(nbytes)), _CHECK)
    with writing(path) as file:
        os.posix_fallocate(file.fileno(), 0, head_bytes + nbytes)  # a full disk is heard of first
        file.seek(head_bytes)
        for number, piece in enumerate(_packed(arrangement, folder)):
            checks[number] = check_of(piece)
            file.write(piece.data)
            if progress is not None:
                progress(len(piece))
        rest = key + _number(nbytes) + checks.tobytes()
        rest = rest.ljust(head_bytes - 40, b"\0")
        file.seek(0)
        file.write(MAGIC + hashlib.sha256(rest).digest() + rest)
    return head_bytes + nbytes


def is_whole(path: Path, key: bytes, nbytes: int) -> bool:
    """Whether a packed file is as it was written, as far as its checks tell (`check_of`)."""
    room = np.zeros(min(PIECE, nbytes), np.uint8)
    try:
        with open_packed(path, key, nbytes) as packed:
            for number, (_, count) in enumerate(packed.pieces):
                packed.read(number, room[:count])
    except BadInput:
        return False
    return True


def _packed(arrangement: Arrangement, folder: Path) -> Iterator[NDArray[np.uint8]]:
    """All bytes of the buffer, cut into pieces; each is valid until the next."""
    piece, filled = np.zeros(PIECE, np.uint8), 0
    for made in _made(arrangement, folder):
        while len(made):
            count = min(len(made), PIECE - filled)
            piece[filled : filled + count] = made[:count]
            made, filled = made[count:], filled + count
            if filled == PIECE:
                yield piece
                filled = 0
    if filled:
        yield piece[:filled]


def _made(arrangement: Arrangement, folder: Path) -> Iterator[NDArray[np.uint8]]:
    """All bytes of the buffer, batch by batch and gap by gap; each is valid until the next."""
    filler, room, end = Filler(), np.zeros(PIECE, np.uint8), 0
    with arrangement.readers(folder) as readers:
        for batch in arrangement.batches(PIECE):
            yield np.zeros(batch.offset - end, np.uint8)
            if batch.nbytes > len(room):
                room = np.zeros(batch.nbytes, np.uint8)
            filler.fill(batch, room, readers)
            yield room[: batch.nbytes]
            end = batch.offset + batch.nbytes
    yield np.zeros(arrangement.nbytes - end, np.uint8)


def _pieces(nbytes: int) -> list[tuple[int, int]]:
    return [(first, min(PIECE, nbytes - first)) for first in range(0, nbytes, PIECE)]


def _head_bytes(nbytes: int) -> int:
    wanted = _FIXED + _CHECK.itemsize * len(_pieces(nbytes))
    return -(-wanted // PAGE) * PAGE


def _number(nbytes: int) -> bytes:
    return nbytes.to_bytes(8, "little")

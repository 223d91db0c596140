"""The table of a safetensors file, read under suspicion and without its tensors."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_exactly, reading
from diffusion_rt.engines.errors import BadInput, shown

MAX_HEADER = 8_000_000  # bytes
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_NAME = 1_000  # characters

ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}

_AGAIN = "download or export it again"
_CONVERT = (
    "where you trust its source, open it with diffusers and write it again with "
    "save_pretrained(DIR, safe_serialization=True)"
)
_OTHER_KINDS = (  # how other files begin, what they are, the way out
    (b"PK\x03\x04", "a zip archive, as torch.save writes, with pickles in it", _CONVERT),
    (b"\x80\x02", "a pickle", _CONVERT),
    (b"\x80\x03", "a pickle", _CONVERT),
    (b"\x80\x04", "a pickle", _CONVERT),
    (b"\x80\x05", "a pickle", _CONVERT),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "run git lfs pull"),
    (b"GGUF", "a GGUF file", "use the safetensors files of this model"),
    (b"\x89HDF", "an HDF5 file", "use the safetensors files of this model"),
    (b"<", "a web page, perhaps an error", _AGAIN),
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: its dtype as safetensors spells it, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the beginning of the file
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class SafetensorsTable:
    """What a safetensors file says of itself. `sha256` is that of `size of header` and header."""

    path: Path
    size: int
    sha256: str
    tensors: Mapping[str, StoredTensor]  # in the order of their bytes
    metadata: Mapping[str, str]


def read_table(path: Path, *, follow_links: bool = True) -> SafetensorsTable:
    """Read and check the header of a safetensors file; its tensors' bytes are not read.

    Raises BadInput unless the file is all of this: a header of at most 8 MB and 20,000 tensors, of
    known dtypes, whose bytes follow each other without gap or overlap to the very end of the file.
    """
    with reading(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:9] != b"{":
            raise BadInput(_not_safetensors(path, size, start))
        if length > MAX_HEADER:
            raise BadInput(
                f"{path}: a header of {length} bytes, at most {MAX_HEADER} are read; {_AGAIN}"
            )
        if size < 8 + length:
            raise BadInput(
                f"{path}: cut short at {size} bytes, its header alone takes {8 + length}; {_AGAIN}"
            )
        file.seek(0)
        head = read_exactly(file, 8 + length, path)
    header = strict_json.parse(head[8:], f"{path}: header")
    if not isinstance(header, dict):
        raise BadInput(f"{path}: header: {shown(header)}, wants an object; {_AGAIN}")
    metadata = _metadata(header.pop("__metadata__", {}), path)
    if len(header) > MAX_TENSORS:
        raise BadInput(f"{path}: {len(header)} tensors, at most {MAX_TENSORS} are read")
    tensors = _in_order(header, 8 + length, path)
    end = max((t.offset + t.length for t in tensors.values()), default=8 + length)
    if end != size:
        wrong = "cut short" if size < end else "bytes after the last tensor"
        raise BadInput(f"{path}: {size} bytes long, its tensors end at {end} ({wrong}); {_AGAIN}")
    return SafetensorsTable(path, size, hashlib.sha256(head).hexdigest(), tensors, metadata)


def _not_safetensors(path: Path, size: int, start: bytes) -> str:
    for magic, kind, way_out in _OTHER_KINDS:
        if start.startswith(magic):
            return f"{path} is {kind}, not safetensors; {way_out}"
    what = "is empty" if not size else f"is no safetensors file ({size} bytes)"
    return f"{path} {what}; {_AGAIN}"


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise BadInput(f"{path}: header: __metadata__ wants names with strings; {_AGAIN}")
    return found


def _in_order(header: dict[str, Any], start: int, path: Path) -> dict[str, StoredTensor]:
    """The tensors by place, each beginning where the one before ends."""
    found = [(*_tensor(name, entry, path), name) for name, entry in header.items()]
    found.sort(key=lambda place: place[:2])
    tensors = {}
    end = 0
    for first, last, dtype, shape, name in found:
        if first != end:
            fault = "overlaps the tensor before" if first < end else "leaves a gap before it"
            raise BadInput(
                f"{path}: tensor {shown(name)} at {first}, wants {end} ({fault}); {_AGAIN}"
            )
        tensors[name] = StoredTensor(dtype, shape, start + first, last - first)
        end = last
    return tensors


def _tensor(name: str, entry: Any, path: Path) -> tuple[int, int, str, tuple[int, ...]]:
    """First and last offset, dtype and shape of one entry of the header."""
    tensor = f"{path}: tensor {shown(name)}"
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise BadInput(f"{tensor}: no valid name; {_AGAIN}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{tensor} wants dtype, shape and data_offsets, no more; {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    item = ITEM_SIZES.get(dtype) if isinstance(dtype, str) else None
    if item is None:
        known = ", ".join(ITEM_SIZES)
        raise BadInput(f"{tensor}: dtype {shown(dtype)}, wants one of {known}; convert it")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise BadInput(f"{tensor}: shape wants at most {MAX_RANK} sizes from 0; {_AGAIN}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise BadInput(f"{tensor}: data_offsets want two places from 0; {_AGAIN}")
    first, last = offsets
    wanted = item * math.prod(shape)
    if last - first != wanted:
        raise BadInput(
            f"{tensor}: {last - first} bytes, {dtype} {list(shape)} wants {wanted}; {_AGAIN}"
        )
    return first, last, dtype, tuple(shape)


def _sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in found)

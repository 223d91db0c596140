"""The texts stored in a PNG file, read without decoding a pixel and without trusting a length."""

import io
import os
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from diffusion_rt.engines.artefact import read_exactly, reading
from diffusion_rt.engines.errors import BadInput, shown

MAX_TEXT = 4 * 1024 * 1024  # bytes of one text, unpacked; our own stay under 1 MiB
MAX_CHUNKS = 100_000
MAX_KEYWORD = 79  # bytes, by the PNG specification (third edition, 11.3.3)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class PngText:
    """A PNG file's size in pixels, and its texts by keyword."""

    width: int
    height: int
    texts: dict[str, str]


def read_png_text(path: Path, keywords: Collection[str]) -> PngText:
    """The texts under `keywords`, the first of each, wherever in the file they stand.

    Raises BadInput where the file is no PNG, ends early, or one of these texts is damaged or longer
    than 4 MiB.
    """
    with reading(path) as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise BadInput(f"{path} is no PNG file; give one that diffusion-rt drew")
        length, kind = _head(file, path)
        if (kind, length) != (b"IHDR", 13):
            raise BadInput(f"{path}: a PNG file without its header")
        width, height = struct.unpack(">II", _content(file, path, kind, length)[:8])
        texts: dict[str, str] = {}
        for _ in range(MAX_CHUNKS):
            length, kind = _head(file, path)
            if kind == b"IEND":
                return PngText(width, height, texts)
            if kind not in (b"tEXt", b"zTXt", b"iTXt"):
                file.seek(length + 4, os.SEEK_CUR)
                continue
            start = read_exactly(file, min(length, MAX_KEYWORD + 1), path)
            file.seek(-len(start), os.SEEK_CUR)
            keyword = start.partition(b"\0")[0].decode("latin-1")
            if keyword not in keywords or keyword in texts:
                file.seek(length + 4, os.SEEK_CUR)
            elif length > MAX_TEXT:
                raise BadInput(f"{path}: {shown(keyword)} is {length} bytes long, too long to read")
            else:
                texts[keyword] = _text(kind, _content(file, path, kind, length), path)
    raise BadInput(f"{path}: more than {MAX_CHUNKS} chunks, too many for a picture")


def _head(file: io.FileIO, path: Path) -> tuple[int, bytes]:
    length, kind = struct.unpack(">I4s", read_exactly(file, 8, path))
    return length, kind


def _content(file: io.FileIO, path: Path, kind: bytes, length: int) -> bytes:
    content = read_exactly(file, length, path)
    if zlib.crc32(kind + content) != int.from_bytes(read_exactly(file, 4, path), "big"):
        raise BadInput(f"{path}: a damaged PNG file (checksum of {shown(kind.decode('latin-1'))})")
    return content


def _text(kind: bytes, content: bytes, path: Path) -> str:
    """The text of a chunk: after the keyword stand, by kind, flags and the names of a language."""
    rest = content.partition(b"\0")[2]
    packed, method = kind == b"zTXt", rest[:1]
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, method = rest[:1] == b"\1", rest[1:2]
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        text = _inflated(rest, method) if packed else rest
        return text.decode("utf-8" if kind == b"iTXt" else "latin-1")
    except (zlib.error, ValueError) as error:
        raise BadInput(f"{path}: a damaged text ({error})") from None


def _inflated(content: bytes, method: bytes) -> bytes:
    if method != b"\0":
        raise ValueError("packed by an unknown method")
    text = zlib.decompressobj().decompress(content, MAX_TEXT + 1)
    if len(text) > MAX_TEXT:
        raise ValueError(f"over {MAX_TEXT} bytes when unpacked")
    return text

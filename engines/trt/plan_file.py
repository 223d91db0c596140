"""Plan files: a TensorRT plan behind a header that says what it is and what bytes it must have.

    offset  bytes
         0      8  b"DRT-PLAN"
         8      4  version of this layout, little-endian
        12      4  length of the header
        16     32  sha256 of the header
        48      …  header: JSON of `PlanHeader`, with the sha256 of the plan
                   zeros to the next multiple of 4096
                …  the plan, to the end of the file

A plan is native code that TensorRT would run without a check of its own: not one byte of it is
shown to TensorRT before its hash is verified, and that it is one this user built or trusts.
"""

import errno
import hashlib
import io
import json
import mmap
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import Progress, read_exactly, reading, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.key import Key, Machine
from diffusion_rt.engines.trt.trust import is_trusted, trust
from diffusion_rt.engines.typed_json import (
    Between,
    Line,
    Matching,
    Sha256,
    Word,
    decode,
    encode,
)

MAGIC = b"DRT-PLAN"
VERSION = 3
PAGE = 4096
MAX_HEADER = 4_000_000
MAX_PLAN = 1 << 40

_FIXED = len(MAGIC) + 4 + 4 + 32
_BLOCK = 8 << 20

Bytes = Annotated[int, Between(0, MAX_PLAN)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A few numbers that TensorRT's parser put into a network by itself."""

    name: Word  # that refitting knows them by
    dtype: Word  # as NumPy spells it
    data: Annotated[str, Matching(r"([0-9a-f]{2}){1,4096}", "hexadecimal digits")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """What a plan file says of its plan.

    Profile i of the engine is `key.profiles[i]` and needs `scratch_bytes[i]` of device memory to
    run, all weights aside; there are no such numbers where nobody could load it to ask. Inputs and
    outputs are those of the manifest's graph. A stripped plan wants `constants` beside the weights.
    """

    key: Key
    plan_bytes: Bytes
    plan_sha256: Sha256
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch_bytes: tuple[Bytes, ...]
    constants: tuple[Constant, ...] = ()
    seconds: Annotated[float, Between(0.0, 1e9)]  # that building took
    made_by: Line  # such as diffusion-rt 0.1.0

    def __post_init__(self) -> None:
        """Refuse a header whose parts do not fit together."""
        if len(self.scratch_bytes) not in (0, len(self.key.profiles)) or not self.key.profiles:
            raise BadInput(
                f"scratch_bytes: {len(self.scratch_bytes)} numbers for "
                f"{len(self.key.profiles)} profiles"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan whose hash was verified; `data` is valid until the block of `open_plan` ends."""

    path: Path
    header: PlanHeader
    data: memoryview


class NotOurs(BadInput):
    """A plan that this user neither built nor trusted."""


def plan_path(folder: Path, graph: str) -> Path:
    """Where the plan of a graph lies in a folder of plans."""
    return folder / f"{graph}.plan"


def write_plan(folder: Path, header: PlanHeader, data: memoryview | bytes) -> Path:
    """Write the plan of `header.key.graph`, whole or not at all, and trust it; the file's path.

    `data` is what the header says it is, or ValueError. Raises BadInput where the folder cannot be
    written or the disk is full; a plan that was there before then stays.
    """
    view = memoryview(data).cast("B")
    if view.nbytes != header.plan_bytes or _sha256(view) != header.plan_sha256:
        raise ValueError("the header is not that of this plan")
    path = plan_path(folder, header.key.graph)
    text = json.dumps(encode(header), separators=(",", ":")).encode()
    if len(text) > MAX_HEADER or _parse(text, str(path)) != header:
        raise ValueError("the header would not read back as it is")
    trust(hashlib.sha256(text).digest())  # before it is there: killed in between, it would be lost
    with writing(path) as file:
        _write_all(file, _start(text))
        for start in range(0, view.nbytes, _BLOCK):
            _write_all(file, view[start : start + _BLOCK])
    return path


def read_header(folder: Path, graph: str, *, ours: bool = False) -> PlanHeader | None:
    """What the plan of a graph says of itself; None where there is none.

    The plan's own bytes are not read, only counted. Raises BadInput where the file is damaged, and
    with `ours` NotOurs where this user neither built nor trusts it.
    """
    path = plan_path(folder, graph)
    if not os.path.lexists(path):
        return None
    with reading(path, follow_links=False) as file:
        start = _read_start(file, path, graph)
    if ours:
        _check_ours(start, path)
    return start.header


def is_ours(folder: Path, graph: str) -> bool:
    """Whether there is a plan of a graph that this user built or trusts, by its header alone."""
    try:
        return read_header(folder, graph, ours=True) is not None
    except BadInput:
        return False


@contextmanager
def open_plan(folder: Path, graph: str, progress: Progress | None = None) -> Iterator[Plan]:
    """The plan of a graph, mapped, its hash verified, for the block.

    `progress` hears of the bytes hashed. Raises BadInput where there is none, NotOurs where this
    user neither built nor trusts it, and BadInput where one byte of it is not as it was written.
    """
    path = plan_path(folder, graph)
    if not os.path.lexists(path):
        raise BadInput(f"{path}: no such plan; make it by diffusion-rt build DIR --engine trt")
    with reading(path, follow_links=False) as file:
        start = _read_start(file, path, graph)
        _check_ours(start, path)
        with _mapped(file, path, start, progress) as plan:
            yield plan


def trust_plan(folder: Path, graph: str) -> bool:
    """Trust the plan of a graph as it is now; whether there is one that was not trusted before.

    Its own bytes are held against its header when it is opened. Raises BadInput where the trust
    cannot be noted.
    """
    path = plan_path(folder, graph)
    try:
        with reading(path, follow_links=False) as file:
            digest = _read_start(file, path, graph).digest
    except BadInput:  # none, or a damaged one, which whoever opens it is told
        return False
    if is_trusted(digest):
        return False
    trust(digest)
    return True


def _check_ours(start: "_Start", path: Path) -> None:
    if not is_trusted(start.digest):
        raise NotOurs(
            f"{path} was not built by you here, and a plan is native code that is run; build it "
            "again, or where you trust its builder say so: --trust, in Python trust=True"
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """What stands before the plan in its file."""

    header: PlanHeader
    digest: bytes  # of the header
    offset: int  # where the plan starts


@contextmanager
def _mapped(
    file: io.FileIO, path: Path, start: _Start, progress: Progress | None
) -> Iterator[Plan]:
    """The plan itself, its hash verified."""
    with (
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[start.offset :] as data,
    ):
        if _sha256(data, progress) != start.header.plan_sha256:
            raise BadInput(_damaged(path, "its bytes changed since it was written (sha256)"))
        yield Plan(path, start.header, data)


def check_usable(header: PlanHeader, path: Path, model: ModelFolder, machine: Machine) -> None:
    """BadInput where a plan is for another checkpoint, GPU, driver or TensorRT than these."""
    key, files = header.key, model.manifest.files
    again = f"build it again: diffusion-rt build {shlex.quote(str(model.path))} --engine trt"
    variant = model.variant(key.graph, key.edits.source)
    if files[variant.file].sha256 != key.onnx:
        raise BadInput(f"{path} was built from another {variant.file} than the model has; {again}")
    for name, sha256 in key.weights.items():
        if name not in files or files[name].sha256 != sha256:
            raise BadInput(f"{path} was built for another {name} than the model has; {again}")
    if (header.inputs, header.outputs) != (variant.inputs, variant.outputs):
        raise BadInput(f"{path} has other inputs or outputs than {variant.file}; {again}")
    if wrong := _foreign(key, machine):
        raise BadInput(f"{path} is {wrong}; {again}")


def _foreign(key: Key, here: Machine) -> str | None:
    """Why a plan does not run on a machine, in words; None where it does."""
    built = key.machine
    if key.builder.compatibility == "ampere+":
        fits = here.arch >= 80
    elif key.builder.compatibility == "same":
        fits = here.arch == built.arch
    else:
        fits = (here.arch, here.gpu) == (built.arch, built.gpu)
    if not fits:
        return (
            f"for {built.gpu} (sm_{built.arch}, hardware compatibility "
            f"{key.builder.compatibility}), this GPU is {here.gpu} (sm_{here.arch})"
        )
    made, have = _version(built.tensorrt), _version(here.tensorrt)
    later = key.builder.version_compatible and made[:1] == have[:1] and have >= made
    if made != have and not later:
        return f"for TensorRT {built.tensorrt}, installed is {here.tensorrt}"
    if _version(here.driver) < _version(built.driver):
        return f"for a driver of CUDA {built.driver} or newer, this one knows {here.driver}"
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in text.split("."))


def _start(text: bytes) -> bytes:
    """All bytes of a file before its plan."""
    head = (
        MAGIC
        + VERSION.to_bytes(4, "little")
        + len(text).to_bytes(4, "little")
        + hashlib.sha256(text).digest()
        + text
    )
    return head + bytes(-len(head) % PAGE)


def _read_start(file: io.FileIO, path: Path, graph: str) -> _Start:
    """What stands before the plan in an open file."""
    size = os.fstat(file.fileno()).st_size
    if size < _FIXED:
        raise BadInput(_damaged(path, f"it is cut short at {size} bytes"))
    fixed = read_exactly(file, _FIXED, path)
    if not fixed.startswith(MAGIC):
        raise BadInput(_damaged(path, "it is no plan file of diffusion-rt"))
    version = int.from_bytes(fixed[8:12], "little")
    length = int.from_bytes(fixed[12:16], "little")
    if version != VERSION:
        raise BadInput(
            f"{path}: written by another diffusion-rt (plan file version {version}, this one reads "
            f"{VERSION}); build it again"
        )
    offset = _FIXED + length + -(_FIXED + length) % PAGE
    if length > MAX_HEADER or size < offset:
        raise BadInput(_damaged(path, f"its header does not fit its {size} bytes"))
    text = read_exactly(file, length, path)
    digest = hashlib.sha256(text).digest()
    if digest != fixed[16:]:
        raise BadInput(_damaged(path, "its header changed since it was written (sha256)"))
    if any(read_exactly(file, offset - _FIXED - length, path)):
        raise BadInput(_damaged(path, "bytes between header and plan"))
    header = _parse(text, str(path))
    if header.key.graph != graph:
        raise BadInput(f"{path} holds the plan of {header.key.graph}; build both again")
    if offset + header.plan_bytes != size:
        raise BadInput(_damaged(path, f"{size} bytes, wants {offset + header.plan_bytes}"))
    return _Start(header, digest, offset)


def _parse(text: bytes, what: str) -> PlanHeader:
    try:
        header: PlanHeader = decode(PlanHeader, strict_json.parse(text, "header"), "")
    except BadInput as wrong:
        raise BadInput(f"{what}: header: {wrong}; build it again") from None
    return header


def _damaged(path: Path, how: str) -> str:
    return f"{path} cannot be used: {how}; remove it and build it again"


def _sha256(data: memoryview, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    for start in range(0, data.nbytes, _BLOCK):
        with data[start : start + _BLOCK] as block:
            digest.update(block)
            if progress:
                progress(block.nbytes)
    return digest.hexdigest()


def _write_all(file: BinaryIO, data: memoryview | bytes) -> None:
    written = file.write(data)
    if written != len(data):
        raise OSError(errno.EIO, "fewer bytes written than given")

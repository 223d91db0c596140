"""Where an export goes: into the checkpoint's own folder, or into one with copies of its files."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diffusion_rt.engines.artefact import locked, reading, remove_partials, sha256_of, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import NAME
from diffusion_rt.export.checkpoint import INDEX, Checkpoint

FICLONE = 0x40049409  # Linux: share the blocks of another file, copied when either is written
SPARE = 64 << 20  # bytes left free beside a copy, for the graphs
_BLOCK = 4 << 20

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """One file that was copied, and its sha256 where copying computed it."""

    file: str
    sha256: str | None


def obstacle_in_place(checkpoint: Checkpoint) -> str | None:
    """Why graphs cannot stand beside the checkpoint's own files; None where they can."""
    folder = checkpoint.folder
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    for file in checkpoint.files:
        path = folder / file
        if not path.resolve().is_relative_to(folder) or path.is_symlink():
            return f"holds symbolic links, such as {file}, as hub caches do"
        if file in checkpoint.tables and path.stat().st_nlink > 1:
            return f"holds hard links, such as {file}"
    return None


@contextmanager
def prepared(checkpoint: Checkpoint, output: Path) -> Iterator[bool]:
    """An output folder, locked for the block; gives whether it is the checkpoint's own.

    A folder that was made is removed again where the block fails. Raises BadInput where another
    export is at work there, where `output` holds something else, and where it is the checkpoint's
    own but cannot take the graphs.
    """
    if output.resolve() == checkpoint.folder:
        if reason := obstacle_in_place(checkpoint):
            raise BadInput(f"{output} {reason}; export into another folder with --output DIR")
        with locked(output, "export"):
            remove_partials(output)
            yield True
        return
    if output.exists() and not output.is_dir():
        raise BadInput(f"{output}: not a folder; choose another with --output DIR")
    made = _make(output)
    try:
        with locked(output, "export"):
            remove_partials(output)
            others = [
                path for path in output.iterdir() if not path.name.startswith(".diffusion-rt")
            ]
            if others and not (output / INDEX).exists():
                raise BadInput(f"{output} holds other files; choose a new or empty folder")
            yield False
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were not there before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise BadInput(f"{folder} cannot be made: {reason}; choose another folder") from None
    return missing


@dataclass(frozen=True, slots=True)
class Contents:
    """What an output folder has of a checkpoint's files (with their sha256), and lacks (sizes)."""

    there: Mapping[str, str]
    missing: Mapping[str, int]


def contents(checkpoint: Checkpoint, output: Path, progress: Progress) -> Contents:
    """Compare the files in `output` with the checkpoint's; BadInput where one is another.

    Weights are compared by their whole content: a fine-tune has the same names and sizes.
    """
    there, missing = {}, {}
    for file in checkpoint.files:
        source, target = checkpoint.folder / file, output / file
        if not target.exists():
            missing[file] = source.stat().st_size
            continue
        there[file] = sha256_of(target, progress, follow_links=False)
        if target.stat().st_size != source.stat().st_size or there[file] != sha256_of(source):
            raise BadInput(
                f"{target} is of another checkpoint than {source}; choose a new or empty folder"
            )
    return Contents(there, missing)


@contextmanager
def copied(
    checkpoint: Checkpoint, output: Path, missing: Mapping[str, int], progress: Progress
) -> Iterator[list[Copied]]:
    """The checkpoint's files in `output` for the block, and for good if it succeeds.

    Blocks of the disk are shared where the file system can; hashed on the way where it cannot.
    Raises BadInput where the disk has no room.
    """
    with ExitStack() as undo:
        found = []
        left = sum(missing.values())
        for file, size in missing.items():
            target = output / file
            for folder in _make(target.parent):
                undo.callback(_remove_folder, folder)
            with reading(checkpoint.folder / file) as source, writing(target) as copy:
                undo.callback(target.unlink, missing_ok=True)
                if _cloned(source.fileno(), copy.fileno()):
                    found.append(Copied(file, None))
                    progress(size)
                else:
                    _check_room(output, left)
                    found.append(Copied(file, _copy(source, copy, progress)))
            left -= size
        yield found
        undo.pop_all()


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise BadInput(
            f"{folder}: copying needs {(size + SPARE) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "make room or choose another disk"
        )


def _copy(source: BinaryIO, target: BinaryIO, progress: Progress) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    while count := source.readinto(block):  # type: ignore[attr-defined]
        digest.update(block[:count])
        target.write(block[:count])
        progress(count)
    return digest.hexdigest()


def publish(
    output: Path, graphs: Mapping[str, bytes], manifest: bytes, names: Collection[str]
) -> None:
    """Put graphs and manifest in place: everything on the disk first, then all names at once.

    Of `names`, all that a graph may have, those that `graphs` lacks are removed. No signal comes
    between the renames; where the machine stops there, no manifest is left that describes other
    graphs.
    """
    with ExitStack() as renames:
        for file, content in {NAME: manifest, **graphs}.items():  # renamed last to first
            target = renames.enter_context(writing(output / file))
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        with _signals_held():
            (output / NAME).unlink(missing_ok=True)
            renames.close()
            for file in set(names) - graphs.keys():
                (output / file).unlink(missing_ok=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect after the block.

    Not by a mask: it would bind this thread alone, and libraries have others to which the kernel
    then gives the signal.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal is handled here
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, frame: held.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])

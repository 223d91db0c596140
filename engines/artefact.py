"""Files on disk: written whole or not at all, read only if regular, hashed, locked.

Everything that this program leaves on disk goes through `writing`; everything that it reads from a
stranger's folder goes through `reading`.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_rt.engines.errors import BadInput, shown

Progress = Callable[[int], None]  # called with the number of bytes done since the last call

_BLOCK = 1 << 20
_PARTIAL = re.compile(r"\.diffusion-rt-[0-9a-f]{16}\.partial")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_FULL = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EDQUOT: "the disk quota is used up; make room and try again",
    errno.EFBIG: "the file is bigger than this place allows; choose another (ulimit -f)",
}


@contextmanager
def writing(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Write a file that appears under `path` when the block ends, or not at all.

    The bytes go to a temporary name in the same folder, are forced to the disk and renamed. What
    ends the block early (an error, Ctrl-C, a full disk) removes them and leaves an older file at
    `path` as it was. A symbolic link at `path` is replaced, not followed. Raises BadInput where
    the folder cannot be written or has no room, and where `path` is a folder, a device or a pipe.
    Unless `replace`, a file that is there when the block ends stays: FileExistsError.
    """
    _check_place(path)
    partial = path.parent / f".diffusion-rt-{secrets.token_hex(8)}.partial"
    try:
        file = _create(partial)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if replace:
                partial.replace(path)
            else:
                _publish(partial, path)
        finally:
            file.raw.close()  # not file.close(): after a failure nothing more may be written
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        reason = _FULL.get(error.errno or 0) if isinstance(error, OSError) else None
        if reason:
            raise BadInput(f"{path} cannot be written: {reason}") from None
        raise


def _publish(partial: Path, path: Path) -> None:
    """Rename a file where nothing has its new name; FileExistsError where something has."""
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # no hard links here: an empty file takes the name, ours takes its place
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            partial.replace(path)
        except BaseException:
            path.unlink()
            raise
    else:
        partial.unlink()


def _check_place(path: Path) -> None:
    """Refuse early what renaming would destroy, or would refuse when all the work is done."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, PermissionError):
        if not path.parent.is_dir():
            raise BadInput(
                f"{path} cannot be written: there is no folder {path.parent}; make it first"
            ) from None
        return
    except ValueError:  # a NUL in the name
        raise BadInput(f"{shown(str(path))}: no valid file name") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {_reason(error)}; choose another name") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise BadInput(f"{path} cannot be written: it is {kind}; choose another name")


def _create(partial: Path) -> "io.BufferedWriter[io.FileIO]":
    """A new locked file; `remove_partials` spares a file that somebody holds locked."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            descriptor = os.open(partial, flags, 0o666)
        except OSError as error:
            raise BadInput(
                f"{partial.parent} cannot be written: {_reason(error)}; choose another folder"
            ) from None
        file = io.BufferedWriter(io.FileIO(descriptor, "wb"), _BLOCK)
        with suppress(OSError):  # a file system without locks; `remove_partials` then does nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else removed as stale between open and lock
            return file
        file.raw.close()


def _reason(error: OSError) -> str:
    return _FULL.get(error.errno or 0) or os.strerror(error.errno or 0).lower()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Remove what writers that were killed left in `folder`; how many files that were.

    A file that is still being written is locked by its writer, and stays.
    """
    removed = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and _remove_if_free(path):
                removed += 1
    return removed


def _remove_if_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def reading(path: Path, *, follow_links: bool = True) -> Iterator[io.FileIO]:
    """Open a regular file for reading, unbuffered; BadInput where there is none.

    A pipe, a device or a folder under that name is refused and never waited for.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise BadInput(
                f"{path}: a symbolic link; put the file itself there (cp --dereference)"
            ) from None
        raise BadInput(
            f"{path} cannot be read: {_reason(error)}; check the path and its permissions"
        ) from None
    except ValueError:  # a NUL in the name
        raise BadInput(f"{shown(str(path))}: no valid file name") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(f"{path}: not a regular file; give the path of a file")
    with io.FileIO(descriptor, "rb") as file:
        yield file


def read_bytes(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """All of a file of at most `limit` bytes; BadInput where it is longer."""
    with reading(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BadInput(f"{path}: {size} bytes long, at most {limit} are read; is it this file?")
        return read_exactly(file, size, path)


def read_exactly(file: io.FileIO, count: int, path: Path) -> bytes:
    """The next `count` bytes; BadInput where the file ends before."""
    blocks = []
    while count:
        block = file.read(min(count, 1 << 26))
        if not block:
            raise BadInput(f"{path}: ends {count} bytes early; download or export it again")
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def sha256_of(path: Path, progress: Progress | None = None, *, follow_links: bool = True) -> str:
    """The sha256 of a file, in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with reading(path, follow_links=follow_links) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path, purpose: str, *, key: str = "") -> Iterator[None]:
    """Hold `folder` (or one `key` in it) against all other processes and threads for the block.

    `purpose` tells others what is going on, such as "export". Raises BadInput at once where
    somebody else holds it. The lock goes with the process, however that ends, and leaves no file
    behind unless it was killed; such a file does no harm.
    """
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no lock key")
    path = folder / (f".diffusion-rt-{key}.lock" if key else ".diffusion-rt.lock")
    descriptor = _lock(path, folder)
    try:
        note = json.dumps({"pid": os.getpid(), "purpose": purpose, "since": int(time.time())})
        with suppress(OSError):  # on a full disk the lock still holds, it only cannot say who
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, folder: Path) -> int:
    while True:
        try:
            descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise BadInput(
                f"{folder} cannot be locked: {_reason(error)}; choose a folder that can be written"
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{path}: not a regular file; remove it")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removes the file as it leaves: a lock on a removed file is void.
            if os.fstat(descriptor).st_nlink and os.path.samestat(
                os.fstat(descriptor), path.lstat()
            ):
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise BadInput(
                f"{folder} is in use by {holder}; wait until that has ended, or stop it"
            ) from None
        except FileNotFoundError:  # from lstat: removed a moment ago
            pass
        except OSError as error:
            os.close(descriptor)
            raise BadInput(f"{folder} cannot be locked: {_reason(error)}") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock, as far as its note can be read."""
    try:
        note: Any = json.loads(os.pread(descriptor, 1024, 0))
        pid, purpose, since = int(note["pid"]), str(note["purpose"]), int(note["since"])
        started = time.strftime("%H:%M:%S", time.localtime(since))
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return "another process"
    return f"another process: {shown(purpose)}, process {pid}, since {started}"

"""Compiled images on disk, each under a key of all that its source says."""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_rt.kernels.catalogue import SOURCES, Variant
from diffusion_rt.kernels.compile import (
    OPTIONS,
    PTX_VERSION,
    Compiler,
    find_compiler,
    require_chip,
)

Progress = Callable[[int, int], None]  # (done, total), in images that have to be made

_LOG = logging.getLogger(__name__)
_MAGIC = b"diffusion-rt kernel 2\n"
_DIGEST_BYTES = 32


class ImageCache:
    """Images by content: a change of source, constants, options or chip makes another key.

    The compiler is no part of it: what one made serves a machine that has another, or none.
    Whoever makes an image holds its lock, and others that want it wait. Where the file system has
    no locks both make it, and both write the same bytes by renaming.
    """

    def __init__(self, folder: Path, compiler: Callable[[], Compiler] = find_compiler) -> None:
        """`compiler` is asked for only when an image is missing."""
        self.folder = folder
        self._find_compiler = compiler
        self._compiler: Compiler | None = None
        self.rebuilt: list[str] = []
        """Names of images that were found damaged and made again; each is logged as well."""
        self.compiled: list[str] = []
        """Names of images that were made."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        """The cubin for a chip; PTX where `arch` is None, or no chip of the catalogue.

        Raises CompileError where it has to be compiled and cannot be, or does not suit the chip.
        """
        path = self._path(variant, arch)
        found = _read(path)
        if found is not None:
            return found
        with self._alone(path):
            found = _read(path)
            return self._made(variant, arch, path) if found is None else found

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        """Make the images that are missing, on all cores that this process may use.

        `progress` hears of them as they are made, and of none where none is missing. Raises
        CompileError as `image` does; what was made until then is kept.
        """
        missing = [each for each in dict.fromkeys(wanted) if _read(self._path(*each)) is None]
        if not missing:
            return
        self._chosen()  # once, before the threads ask for it
        if progress is not None:
            progress(0, len(missing))
        # Threads are enough: NVRTC compiles without Python's lock, and several kernels at once.
        pool = ThreadPoolExecutor(min(len(missing), len(os.sched_getaffinity(0))))
        try:
            making = [pool.submit(self.image, *each) for each in missing]
            for done, made in enumerate(as_completed(making), 1):
                made.result()
                if progress is not None:
                    progress(done, len(missing))
        finally:
            pool.shutdown(cancel_futures=True)

    def _made(self, variant: Variant, arch: int | None, path: Path) -> bytes:
        if path.exists():
            self.rebuilt.append(path.name)
            _LOG.warning("%s was damaged and is made again", path)
        compiler = self._chosen()
        if arch is None or arch not in variant.archs:
            image = compiler.ptx(variant)
        else:
            image = compiler.cubin(variant, arch)
        self._write(path, image)
        self.compiled.append(path.name)
        return image

    def _chosen(self) -> Compiler:
        if self._compiler is None:
            self._compiler = self._find_compiler()
        return self._compiler

    def _path(self, variant: Variant, arch: int | None) -> Path:
        kind = variant.ptx_target
        if arch is not None:
            require_chip(variant, arch)
            if arch in variant.archs:
                kind = variant.target(arch)
        digest = hashlib.sha256(_MAGIC)
        sources = [*sorted(SOURCES.glob("*.h")), SOURCES / variant.source]
        parts = [kind, variant.kernel, *OPTIONS, *(f"{n}={v}" for n, v in variant.constants)]
        if kind == variant.ptx_target:
            digest.update(PTX_VERSION)
        for part in [*(p.encode() for p in parts), *(path.read_bytes() for path in sources)]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return self.folder / f"{variant.name}-{kind}-{digest.hexdigest()[:32]}"

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold an image against all other processes and threads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f".{path.name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(lock, flags, 0o600)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # a waiter finds the image, and needs the lock no more
        finally:
            os.close(descriptor)

    def _write(self, path: Path, image: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".making-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(image).digest() + image)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _read(path: Path) -> bytes | None:
    """The image in a file; None where there is none, or it is not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    image = content[len(_MAGIC) + _DIGEST_BYTES :]
    if content[: len(_MAGIC) + _DIGEST_BYTES] == _MAGIC + hashlib.sha256(image).digest():
        return image
    return None

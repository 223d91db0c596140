"""Compiled images on disk, each under a key of all that its source says."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from diffusion_rt.kernels.catalogue import ARCHS, SOURCES, Variant
from diffusion_rt.kernels.compile import OPTIONS, PTX_VERSION, Compiler, find_compiler

_LOG = logging.getLogger(__name__)
_MAGIC = b"diffusion-rt kernel 1\n"
_DIGEST_BYTES = 32


class ImageCache:
    """Images by content: a change of source, constants, options or chip makes another key.

    The compiler is no part of it: what one made serves a machine that has another, or none.
    Two processes may build the same image at once; both write the same bytes by renaming, and one
    takes under a second, so nothing is locked.
    """

    def __init__(self, folder: Path, compiler: Callable[[], Compiler] = find_compiler) -> None:
        """`compiler` is asked for only when an image is missing."""
        self.folder = folder
        self._find_compiler = compiler
        self._compiler: Compiler | None = None
        self.rebuilt: list[str] = []
        """Names of images that were found damaged and made again; each is logged as well."""
        self.compiled: list[str] = []
        """Names of images that were not there."""

    def image(self, variant: Variant, arch: int) -> bytes:
        """The cubin for a chip, or PTX where the catalogue does not know the chip.

        Raises CompileError where it has to be compiled and cannot be, or does not suit the chip.
        """
        kind = variant.target(arch) if arch in variant.archs else "ptx"
        path = self.folder / f"{variant.name}-{kind}-{self._key(variant, kind)}"
        found = self._read(path)
        if found is not None:
            return found
        self.compiled.append(path.name)
        compiler = self._chosen()
        image = compiler.ptx(variant) if kind == "ptx" else compiler.cubin(variant, arch)
        self._write(path, image)
        return image

    def fill(self, variants: list[Variant], archs: tuple[int, ...] = ARCHS) -> None:
        """Make everything ahead of time, PTX included."""
        for variant in variants:
            for arch in (*archs, max(ARCHS) + 1):
                if arch in variant.archs or not variant.suffix:
                    self.image(variant, arch)

    def _chosen(self) -> Compiler:
        if self._compiler is None:
            self._compiler = self._find_compiler()
        return self._compiler

    def _key(self, variant: Variant, kind: str) -> str:
        digest = hashlib.sha256(_MAGIC)
        sources = [*sorted(SOURCES.glob("*.h")), SOURCES / variant.source]
        parts = [kind, variant.kernel, *OPTIONS, *(f"{n}={v}" for n, v in variant.constants)]
        if kind == "ptx":
            digest.update(PTX_VERSION)
        for part in [*(p.encode() for p in parts), *(path.read_bytes() for path in sources)]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()[:32]

    def _read(self, path: Path) -> bytes | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        image = content[len(_MAGIC) + _DIGEST_BYTES :]
        if content[: len(_MAGIC) + _DIGEST_BYTES] == _MAGIC + hashlib.sha256(image).digest():
            return image
        self.rebuilt.append(path.name)
        _LOG.warning("%s was damaged and is made again", path)
        return None

    def _write(self, path: Path, image: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
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

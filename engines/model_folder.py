"""A model folder, opened: its manifest, and the promise that its files are the ones exported."""

import hashlib
import io
import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diffusion_rt.engines.artefact import Progress, read_bytes, read_exactly, reading, sha256_of
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import (
    MAX_BYTES,
    NAME,
    FileRecord,
    GraphVariant,
    Manifest,
    parse_manifest,
)
from diffusion_rt.engines.safetensors_file import MAX_HEADER, read_table
from diffusion_rt.engines.spec import Precision

# A file of several names can be changed under another one, so it is hashed whole; not if that is
# slow. Package installers link files of this size out of their caches.
MAX_LINKED = 64 << 20

WEIGHTS = ".safetensors"

_RESTORE = "restore it, or export the model again"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose manifest was read and whose files were checked against it."""

    path: Path  # absolute, without symbolic links
    manifest: Manifest
    sha256: str  # of manifest.json, and so of everything it names: the key for what is built

    def variant(self, graph: str, precision: Precision) -> GraphVariant:
        """What the manifest says of a graph; BadInput where it was not exported."""
        variants = self.manifest.graphs.get(graph)
        if variants is None:
            have = ", ".join(self.manifest.graphs)
            raise BadInput(f"{self.path} has no ONNX graph {graph}, only {have}; export it again")
        if precision not in variants:
            raise BadInput(
                f"{self.path} has no {precision} graph of {graph}, only {', '.join(variants)}; "
                "export it again without --dtype, which writes both"
            )
        return variants[precision]

    def graph(self, graph: str, precision: Precision) -> Path:
        """The ONNX file of a graph; BadInput where it was not exported."""
        return self.path / self.variant(graph, precision).file

    def verify(self, *, full: bool, weights: bool = True, progress: Progress | None = None) -> None:
        """Check every file against the manifest; BadInput names the first that differs.

        Without `full`, safetensors files are known by their size and table of tensors and all
        others by their sha256; with it all are hashed whole, and `progress` hears of the bytes.
        Without `weights`, safetensors files may be anything, or missing.
        """
        files = {
            name: record
            for name, record in self.manifest.files.items()
            if weights or not name.endswith(WEIGHTS)
        }
        folders = {PurePosixPath(name).parent for name in files}
        for folder in {parent for path in folders for parent in (path, *path.parents)}:
            self._check_folder(self.path / folder)
        for name, record in files.items():
            path = self.path / name
            self._check_quickly(path, record)
            if full:
                _compare(path, sha256_of(path, progress, follow_links=False), record.sha256)

    @staticmethod
    def _check_folder(folder: Path) -> None:
        try:
            mode = folder.lstat().st_mode
        except OSError:
            raise BadInput(f"{folder}: no such folder; {_RESTORE}") from None
        if not stat.S_ISDIR(mode):
            raise BadInput(f"{folder}: not a folder, perhaps a symbolic link; {_RESTORE}")

    @staticmethod
    def _check_quickly(path: Path, record: FileRecord) -> None:
        with reading(path, follow_links=False) as file:
            found = os.fstat(file.fileno())
            if found.st_size != record.size:
                raise BadInput(
                    f"{path}: {found.st_size} bytes long, the manifest says {record.size}; "
                    f"{_RESTORE}"
                )
            linked = found.st_nlink > 1
            if linked and record.size > MAX_LINKED:
                raise BadInput(
                    f"{path}: hard-linked, it could be changed under another name; put a copy "
                    "there (cp --reflink=auto)"
                )
            if record.table is None or linked:
                _compare(path, hashlib.file_digest(file, "sha256").hexdigest(), record.sha256)
            else:
                _compare(path, _table_sha256(file, path), record.table)


def open_model(path: Path, *, weights: bool = True) -> ModelFolder:
    """Open a model folder and check its files (see `ModelFolder.verify`, not full).

    Without `weights` it is for what reads none: its safetensors files are not looked at.

    Raises BadInput where it is no exported model, where a file is missing, changed or a link, and
    where the manifest is broken or newer.
    """
    if not path.is_dir():
        wrong = "not a folder" if path.exists() else "no such folder"
        raise BadInput(f"{path}: {wrong}; give the folder that diffusion-rt export made")
    folder = path.resolve()
    if not os.path.lexists(folder / NAME):
        if (folder / "model_index.json").exists():
            command = f"diffusion-rt export {shlex.quote(str(path))}"
            raise BadInput(f"{path} is a checkpoint, not exported yet: run {command}")
        raise BadInput(f"{path} has no {NAME}: not a model folder; make one by diffusion-rt export")
    content = read_bytes(folder / NAME, MAX_BYTES, follow_links=False)
    manifest = parse_manifest(content, str(path / NAME))
    model = ModelFolder(folder, manifest, hashlib.sha256(content).hexdigest())
    model.verify(full=False, weights=weights)
    return model


def record_of(path: Path, progress: Progress | None = None) -> FileRecord:
    """What the manifest will say of a file; a safetensors file's table is checked on the way."""
    table = read_table(path).sha256 if path.suffix == WEIGHTS else None
    return FileRecord(size=path.stat().st_size, sha256=sha256_of(path, progress), table=table)


def _table_sha256(file: io.FileIO, path: Path) -> str:
    start = read_exactly(file, 8, path)
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise BadInput(f"{path}: a header of {length} bytes, wants at most {MAX_HEADER}")
    return hashlib.sha256(start + read_exactly(file, length, path)).hexdigest()


def _compare(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise BadInput(f"{path} was changed since it was exported (sha256); {_RESTORE}")

"""A model of generated weights without them: a few megabytes that grow to gigabytes elsewhere.

Every weight of a generated checkpoint depends on its name and the seed alone, so a safetensors file
is known by its header. What is carried to a machine that can download nothing is the exported
model's graphs and manifest, and these headers.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_rt.bench.checkpoint import DTYPES, block_of, uniform, write_weights
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import NAME as MANIFEST
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.safetensors_file import MAX_HEADER

WEIGHTS, HEADER = ".safetensors", ".safetensors.header"
LOOKED_AT = 5  # tensors of a file whose bytes are held against the generated ones
MAX_FILE = 64 << 20  # bytes of a file that is no weights


def strip(model: Path, target: Path, seed: int = 0) -> int:
    """Copy an exported model of generated weights without them; the bytes of what is left.

    Raises BadInput where its weights are not those of the seed, or the target exists.
    """
    folder = open_model(model).path
    if target.exists():
        raise BadInput(f"{target}: it is there already; name a new folder")
    total = 0
    for path in _files(folder):
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(WEIGHTS):
            header = _header(path)
            _check_generated(path, header, seed)
            place = place.with_name(path.name.removesuffix(WEIGHTS) + HEADER)
            place.write_bytes(header)
        else:
            shutil.copyfile(path, place)
        total += place.stat().st_size
    return total


def is_bare(folder: Path) -> bool:
    """Whether weights are to be generated into a copy of it first."""
    return any(folder.rglob(f"*{HEADER}"))


def fill(bare: Path, target: Path, seed: int = 0) -> int:
    """Copy a bare model and generate its weights; how many they are. BadInput where it is none.

    The manifest is written last: a folder that has one is whole.
    """
    count = 0
    for path in sorted(_files(bare), key=lambda path: path.name == MANIFEST):
        place = target / path.relative_to(bare)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not path.name.endswith(HEADER):
            shutil.copyfile(path, place)
            continue
        header = read_bytes(path, MAX_HEADER)
        shapes, dtype = _shapes(header, path)
        place = place.with_name(path.name.removesuffix(HEADER) + WEIGHTS)
        count += write_weights(place, shapes, dtype, seed)
        if _header(place) != header:
            raise BadInput(f"{path}: no header of a generated file; strip the model again")
    return count


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadInput(f"{path}: neither a file nor a folder; remove it")
        weights = path.name.endswith(WEIGHTS)
        if path.is_file():
            if not weights and path.stat().st_size > MAX_FILE:
                most = MAX_FILE >> 20
                raise BadInput(f"{path}: larger than {most} MiB and no weights; remove it")
            yield path


def _header(path: Path) -> bytes:
    """The header of a safetensors file with its length in front and the blanks behind."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise BadInput(f"{path}: a header of {size} bytes, at most {MAX_HEADER}")
        return file.read(size)


def _shapes(header: bytes, path: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """The shapes of the tensors in their order, and their one dtype."""
    found = strict_json.parse(header, str(path))
    names = {letters: name for name, letters in DTYPES.items()}
    try:
        entries: dict[str, Any] = {k: v for k, v in found.items() if k != "__metadata__"}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        kinds = {names[entry["dtype"]] for entry in entries.values()}
        (kind,) = kinds
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(f"{path}: no header of a generated file; strip the model again") from None
    return shapes, kind


def _check_generated(path: Path, header: bytes, seed: int) -> None:
    """Hold some tensors, from the first to the last, against what the seed makes of their names."""
    shapes, dtype = _shapes(header, path)
    entries = json.loads(header)
    noise = uniform(seed)
    names = list(shapes)
    with path.open("rb") as file:
        for name in names[:: max(1, len(names) // LOOKED_AT)]:
            start = 8 + len(header) + entries[name]["data_offsets"][0]
            count = min(math.prod(shapes[name]), 1024)
            wanted = block_of(name, shapes[name], dtype, noise)[:count]
            file.seek(start)
            if file.read(wanted.nbytes) != wanted.tobytes():
                raise BadInput(
                    f"{path}: {name} is not what seed {seed} makes; only generated weights "
                    f"(diffusion-rt bench export --keep DIR, or checkpoint --seed {seed}) can be "
                    "left out"
                )

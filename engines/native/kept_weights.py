"""The packed files of a model: where they lie, when one is made, and which are used."""

import logging
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

from diffusion_rt.engines.artefact import Progress, locked, remove_partials
from diffusion_rt.engines.cache_folder import cache_folder, cache_path
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.kept import kept_name, own_folder, remove_superseded
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.arrangement import Arrangement
from diffusion_rt.engines.native.packed import is_whole, key_of, open_packed, write_packed
from diffusion_rt.engines.native.plan import Arithmetic
from diffusion_rt.engines.native.weights import Weights

FOLDER = "native"  # in the model's `engines`, and in the cache

_LOG = logging.getLogger(__name__)


class PackedFiles:
    """What a model's packed files give to weights; each that is no good is told of once."""

    def __init__(self, model: ModelFolder) -> None:
        """Look at nothing yet."""
        self._model = model
        self._wrong: set[Path] = set()

    def bring(self, weights: Weights, graph: str, dtype: Arithmetic) -> bool:
        """Stream the weights of a graph; False where no file of theirs can be used.

        They may be damaged then, and are to be streamed from the checkpoint.
        """
        for path in _there(self._model, graph, dtype):
            if path in self._wrong:
                continue
            key = _key(self._model, weights.arrangement)
            try:
                with open_packed(path, key, weights.nbytes) as packed:
                    weights.stream_packed(packed)
                return True
            except BadInput as wrong:
                self._wrong.add(path)
                _LOG.warning(
                    "%s; read from the checkpoint, packed anew by diffusion-rt build "
                    "--engine native --pack-weights",
                    wrong,
                )
        return False


def pack(
    model: ModelFolder,
    graph: str,
    dtype: Arithmetic,
    arrangement: Arrangement,
    progress: Progress | None = None,
) -> Path:
    """Pack the weights of a graph; the file, in the model's folder or else in the user's cache.

    What a checkpoint that was replaced has left in the cache is removed. Raises BadInput where
    neither place can be written or has room, where another process packs there, and where the
    checkpoint is not whole.
    """
    path = _place(model, graph, dtype)
    with locked(path.parent, "packing weights", key=path.stem):
        remove_partials(path.parent)
        write_packed(path, arrangement, _key(model, arrangement), model.path, progress)
    with suppress(BadInput):  # no cache, so nothing in it
        if cache_path(FOLDER).is_dir():
            remove_superseded(cache_folder(FOLDER), model)
    return path


def whole(
    model: ModelFolder, graph: str, dtype: Arithmetic, arrangement: Arrangement
) -> Path | None:
    """The packed file of a graph that would be used, if all of its pieces are right."""
    key = _key(model, arrangement)
    found = _there(model, graph, dtype)
    return next((path for path in found if is_whole(path, key, arrangement.nbytes)), None)


def _key(model: ModelFolder, arrangement: Arrangement) -> bytes:
    files = model.manifest.files
    # As `check_external` finds them: the manifest spells no `./`.
    hashes = {place: files[str(PurePosixPath(place))].sha256 for place in arrangement.locations}
    return key_of(arrangement, hashes)


def _place(model: ModelFolder, graph: str, dtype: Arithmetic) -> Path:
    folder = own_folder(model, FOLDER)
    if folder is not None:
        return folder / f"{graph}-{dtype}.weights"
    return cache_folder(FOLDER) / kept_name(model, f"{graph}-{dtype}")


def _there(model: ModelFolder, graph: str, dtype: Arithmetic) -> list[Path]:
    """The files there are, that in the model's folder first."""
    places = [model.path / "engines" / FOLDER / f"{graph}-{dtype}.weights"]
    with suppress(BadInput):  # no cache, or one that cannot be trusted; build says so
        if cache_path(FOLDER).is_dir():
            places.append(cache_folder(FOLDER) / kept_name(model, f"{graph}-{dtype}"))
    return [path for path in places if os.path.lexists(path)]

"""What is made of a model's weights and kept: in its own folder, or in the user's cache.

A name in the cache says whose it is: digits for the model's folder, digits for its manifest. So
what a checkpoint that was replaced has left there can be told, and is removed.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from diffusion_rt.engines.artefact import locked
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder

_DIGITS = 16


def own_folder(model: ModelFolder, name: str) -> Path | None:
    """The folder of that name in the model's `engines`, made; None where none can be written."""
    folder = model.path / "engines" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def kept_name(model: ModelFolder, what: str) -> str:
    """A file's name in a folder of the cache, such as `<folder>-<manifest>-<what>.weights`."""
    return f"{_owner(model)}-{model.sha256[:_DIGITS]}-{what}.weights"


def remove_superseded(folder: Path, model: ModelFolder) -> int:
    """Remove from a folder of the cache what was made of this model folder as it was before.

    How many files that were. Only files of names like `kept_name`'s; none where another process is
    at it.
    """
    owner, removed = _owner(model), 0
    name = re.compile(rf"{owner}-([0-9a-f]{{{_DIGITS}}})-[a-z0-9_-]+\.weights")
    with suppress(BadInput, OSError), locked(folder, "removing old weights", key=f"old-{owner}"):
        for path in sorted(folder.iterdir()):
            found = name.fullmatch(path.name)
            ours = path.is_file() or path.is_symlink()
            if found and ours and found[1] != model.sha256[:_DIGITS]:
                path.unlink()
                removed += 1
    return removed


def _owner(model: ModelFolder) -> str:
    return hashlib.sha256(os.fsencode(model.path)).hexdigest()[:_DIGITS]

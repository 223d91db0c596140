"""Where on this machine things are kept that can be made again."""

import os
import stat
from pathlib import Path

from diffusion_rt.engines.errors import BadInput


def cache_path(name: str) -> Path:
    """Where the folder of that name is, or would be made; BadInput for a user without a home."""
    return user_cache() / "diffusion-rt" / name


def user_cache() -> Path:
    """The user's cache folder, by XDG's rule; BadInput where none can be told."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no such user in the system's list, as in a container
        raise BadInput(
            f"user {os.getuid()} has no home for a cache; set XDG_CACHE_HOME to a folder"
        ) from None


def cache_folder(name: str) -> Path:
    """A folder of that name under the user's cache folder, made where it is missing.

    What lies there is run, so BadInput where others may write to it, or where it cannot be made.
    """
    folder = cache_path(name)
    try:
        for place in (folder.parent, folder):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = place.stat()
            if found.st_uid not in (os.getuid(), 0):
                raise BadInput(f"{place} belongs to another user; set XDG_CACHE_HOME to a folder")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise BadInput(f"{place} can be written by others: chmod go-w {place}")
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder of yours"
        ) from None
    return folder

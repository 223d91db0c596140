"""Where pictures go: names that take nothing from anybody, refused early if not writable."""

import os
import re
import tempfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from diffusion_rt.command import shortened
from diffusion_rt.engines.errors import BadInput

_NUMBERED = re.compile(r"picture-([0-9]{1,9})\.png")
_PROBE = 1 << 16  # bytes that must fit before any work is begun


def check_output(output: str, images: int, *, overwrite: bool) -> None:
    """Refuse now what could not be written later.

    `output` is a name that ends in .png, or a folder for files named `picture-N.png`. The folder
    must exist (but for the last of a path that ends in a slash, which is made when the pictures
    are drawn), take a file and have some room; a file that is there is kept unless `overwrite`.
    """
    paths = list(islice(names(output, images), images))
    folder = paths[0].parent
    place = folder.parent if output.endswith("/") and not os.path.lexists(folder) else folder
    if not place.is_dir():
        raise BadInput(f"output {shortened(output)}: there is no folder {place}; make it first")
    for path in paths:
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unwritable(output, error) from None
        if not path.is_file():
            raise BadInput(f"output: {path} is no regular file; choose another name")
        if not overwrite:
            raise BadInput(f"output: {path} exists; choose another name or add --overwrite")
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise _unwritable(output, error) from None


def names(output: str, images: int) -> Iterator[Path]:
    """Names for pictures: NAME.png, NAME-1.png … NAME-N.png, or FOLDER/picture-N.png without end.

    In a folder the numbers go on after the highest one there. Raises BadInput for another suffix.
    """
    path = Path(output)
    if "\0" in output:
        raise BadInput("output holds a NUL character, which no file name can")
    if is_folder(output):
        return (path / f"picture-{i}.png" for i in count(1 + _highest(path)))
    if path.suffix.lower() != ".png":
        raise BadInput(
            f"output {shortened(output)!r} ends in no .png, the one format there is; "
            f"try {shortened(_stem(path))}.png"
        )
    if images == 1:
        return iter([path])
    return (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, images + 1))


def is_folder(output: str) -> bool:
    """Whether pictures get numbered names in the folder `output`."""
    try:
        return output.endswith("/") or Path(output).is_dir()
    except OSError:  # a name too long, say; `check_output` says so
        return False


def _stem(path: Path) -> str:
    """The name without its suffix; `picture` where nothing is left of `-` or `.png`."""
    return path.stem if path.stem.strip("-.") not in ("", "png") else "picture"


def _highest(folder: Path) -> int:
    try:
        names = [_NUMBERED.fullmatch(path.name) for path in folder.iterdir()]
    except OSError:  # `check_output` says what is wrong with it
        return 0
    return max((int(name[1]) for name in names if name), default=0)


def _unwritable(output: str, error: OSError) -> BadInput:
    reason = (error.strerror or "unknown error").lower()
    return BadInput(f"output {shortened(output)} cannot be written: {reason}; choose another place")

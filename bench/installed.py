"""How much disk the packages take that something needs, with all that these need in turn."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusion_rt
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.doctor import CORE

# What a user of each installs to draw on a CPU: ours is core and the extra `cpu`; diffusers' is
# what its documentation installs, `diffusers[torch] transformers`.
OURS = (*CORE, "onnxruntime")
DIFFUSERS = ("diffusers[torch]", "transformers")


def closure(roots: Iterable[str]) -> list[str]:
    """The names of all distributions that `roots` need on this machine, themselves included.

    BadInput where one is not installed.
    """
    found: dict[str, set[str]] = {}  # distribution -> the extras of it that are wanted
    todo = [Requirement(root) for root in roots]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        extras = {"", *wanted.extras}
        fresh = extras - found.setdefault(name, set())
        found[name] |= fresh
        if not fresh:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise BadInput(f"{name} is not installed, so its size is unknown; install it") from None
        for line in required:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in fresh):
                todo.append(requirement)
    return sorted(found)


def size_of(distributions: Iterable[str]) -> int:
    """Bytes of all files that installing these put on the disk, compiled modules included."""
    total = 0
    for name in distributions:
        files = metadata.files(name)
        if files is None:
            raise BadInput(f"{name} has no list of its files, so its size is unknown; use pip")
        total += sum(size for file in files if (size := _size(Path(str(file.locate())))))
    return total


def own_size() -> int:
    """Bytes of this package as it is installed: its modules and the models that come with it."""
    root = Path(diffusion_rt.__file__).parent
    kept = [*root.glob("*.py")]
    for folder in root.iterdir():  # by name, since the folders of a checkout are links
        if folder.is_dir():
            kept += folder.resolve().rglob("*.py")
    kept += (path for path in (root / "runtime" / "models").resolve().rglob("*") if path.is_file())
    return sum(map(_size, set(kept)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

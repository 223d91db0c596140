"""How much disk the packages take that something needs, with all that these need in turn.

Of a set that does not lie in this environment, the size of a folder that pip installed it or
downloaded its files into.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion

from diffusion_rt.bench import machine
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.manifest import NAME as MANIFEST
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
    """Bytes of this package as pip installs it, compiled modules and the model included.

    Raises Fault where a checkout cannot be made a wheel, or pip does not install it.
    """
    root = machine.checkout()
    if root is None:
        return size_of(["diffusion-rt"])
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        install(wheel_of(root, Path(folder)), site)
        return size_below(site)


def own_wheel() -> int:
    """Bytes of the wheel of this package; BadInput outside of a checkout, which alone makes one."""
    root = machine.checkout()
    if root is None:
        raise BadInput("this is no checkout, so the size of its wheel is unknown; run in a clone")
    with tempfile.TemporaryDirectory() as folder:
        return _size(wheel_of(root, Path(folder)))


def wheel_of(root: Path, folder: Path) -> Path:
    """A wheel of a checkout, made in `folder` of a copy: what was built before must not get in."""
    copy = folder / "copy"
    for name in machine.SOURCES:
        kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(root / name, copy / name)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, site: Path) -> None:
    """Install a wheel by itself into a folder."""
    _pip("install", "--target", str(site), str(wheel))


def _pip(command: str, *words: str) -> None:
    """Have pip do something of which it needs neither network nor other packages."""
    common = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", command, *common, *words],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise Fault(f"pip {command}: {last[:300]}")


def checkpoint_size(model: Path) -> int:
    """Bytes of an exported model's own checkpoint, which diffusers draws with: its files alone."""
    made = (model / MANIFEST, *model.glob("*.onnx"))
    return size_below(model) - sum(map(_size, made))


def versions_in(site: Path) -> dict[str, str]:
    """The packages that pip installed into a folder, and their versions."""
    found = metadata.distributions(path=[str(site)])
    return {canonicalize_name(one.metadata["Name"]): one.version for one in found}


def size_below(folder: Path) -> int:
    """Bytes of all files in a folder; BadInput where there are none."""
    total = sum(map(_size, folder.rglob("*")))
    if not total:
        raise BadInput(f"{folder}: nothing lies there; pip install --target DIR …")
    return total


def versions_of_files(folder: Path) -> dict[str, str]:
    """The packages whose files pip downloaded into a folder, and their versions.

    BadInput where another file lies there, or none.
    """
    found = {}
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".whl":
                name, version, *_ = parse_wheel_filename(path.name)
            else:
                name, version = parse_sdist_filename(path.name)
        except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            raise BadInput(f"{path}: no file of a package; pip download --dest DIR …") from None
        found[str(name)] = str(version)
    if not found:
        raise BadInput(f"{folder}: no files of packages lie there; pip download --dest DIR …")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

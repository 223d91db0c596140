"""Which way each operation runs: as measured on this chip, else the likely fastest.

Measurements are kept in one file for each chip, driver and set of kernels. The file holds names and
times alone: a wrong one can make a picture slow, never different beyond rounding.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import locked, read_bytes, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.ways import Library, Way, Ways
from diffusion_rt.engines.typed_json import Between, Matching, decode
from diffusion_rt.kernels.catalogue import CATALOGUE, SOURCES
from diffusion_rt.kernels.compile import OPTIONS
from diffusion_rt.kernels.driver import Device

VERSION = 1
MAX_BYTES = 16 << 20
MAX_OPERATIONS = 50_000

_Text = Annotated[str, Matching(r"[ -~]{0,2000}", "printable text")]


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest way of an operation."""

    way: _Text
    microseconds: Annotated[float, Between(0.0, 1e9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What measurements hold for."""

    chip: _Text
    arch: Annotated[int, Between(10, 1000)]
    driver: _Text
    kernels: _Text  # a hash of all sources and rows of the catalogue
    libraries: _Text = ""  # the versions of those that were measured beside them

    @property
    def digest(self) -> str:
        """A short name for it; whether there were libraries is seen without opening one."""
        known = {name: value for name, value in asdict(self).items() if name != "libraries"}
        base = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        return f"{base}-libraries" if self.libraries else base


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    key: Key
    operations: Mapping[_Text, Measured]


class Tactics:
    """Measured ways by the sizes of an operation; those of other sizes are the likely fastest."""

    def __init__(self, folder: Path, key: Key) -> None:
        """Read what was measured; a file that is damaged or not for this chip counts as none."""
        self.path = path_of(folder, key)
        self.rebuilt: list[str] = []
        """What was wrong with a file that is not used, for the caller to tell."""
        self._key = key
        self._found: dict[str, Measured] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._found)

    def choose(self, ways: Ways) -> Way:
        """The way that was measured as the fastest, or the first."""
        found = self._found.get(ways.sizes)
        named = (way for way in ways.ways if found is not None and way.name == found.way)
        return next(named, ways.ways[0])

    def knows(self, ways: Ways) -> bool:
        """Whether there is nothing to measure: one way alone, or the fastest is known."""
        if len(ways.ways) == 1:
            return True
        found = self._found.get(ways.sizes)
        return found is not None and any(way.name == found.way for way in ways.ways)

    def put(self, ways: Ways, fastest: Way, microseconds: float) -> None:
        """Note a measurement; `save` keeps it."""
        if len(self._found) >= MAX_OPERATIONS:
            self._found.clear()
        self._found[ways.sizes] = Measured(fastest.name, round(microseconds, 3))

    def forget(self) -> None:
        """Know nothing any more; the file stays until `save`."""
        self._found.clear()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the file against another process that measures; BadInput at once where one does."""
        return locked(self.path.parent, "measure tactics", key=self.path.stem)

    def save(self) -> None:
        """Write everything that is known, whole or not at all."""
        content = asdict(_Content(key=self._key, operations=dict(sorted(self._found.items()))))
        body = json.dumps(content, sort_keys=True)
        whole = {"version": VERSION, "sha256": _hash(body), "content": content}
        with writing(self.path) as file:
            file.write(json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            whole = strict_json.parse(read_bytes(self.path, MAX_BYTES), str(self.path))
            if not isinstance(whole, dict) or whole.keys() != {"version", "sha256", "content"}:
                raise BadInput("no file of tactics")
            if whole["version"] != VERSION:
                raise BadInput("another version's")
            if whole["sha256"] != _hash(json.dumps(whole["content"], sort_keys=True)):
                raise BadInput("damaged (sha256)")
            content: _Content = decode(_Content, whole["content"], "")
            if content.key != self._key:
                raise BadInput("measured on another chip, driver, set of kernels or libraries")
        except BadInput as wrong:
            self.rebuilt.append(f"{self.path}: {wrong}; measured anew by diffusion-rt build")
            return
        self._found = dict(content.operations)


def path_of(folder: Path, key: Key) -> Path:
    """The file of measurements that hold for `key`."""
    return folder / f"tactics-{key.digest}.json"


def path_with_libraries(folder: Path, device: Device) -> Path:
    """The file of what was measured on a device with libraries, whichever these were."""
    return path_of(folder, replace(key_of(device), libraries="some"))


def key_of(device: Device, libraries: Sequence[Library] = ()) -> Key:
    """What measurements on a device hold for."""
    return Key(
        chip=device.name,
        arch=device.arch,
        driver=device.driver,
        kernels=hash_of_kernels(),
        libraries=" ".join(sorted(library.version for library in libraries)),
    )


def hash_of_kernels() -> str:
    """Of every source, and of every row of the catalogue."""
    digest = hashlib.sha256(repr((OPTIONS, sorted(CATALOGUE.items()))).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cu", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()

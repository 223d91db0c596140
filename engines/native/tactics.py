"""Which way each operation runs: as measured here, else as a table that ships says, else the likely
fastest.

Measurements are kept in one file for each chip, driver and set of kernels. The file holds names and
times alone: a wrong one can make a picture slow, never different beyond rounding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import locked, read_bytes, writing
from diffusion_rt.engines.cache_folder import cache_path
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.shipped import TABLES, Microseconds, Text, read_tables
from diffusion_rt.engines.native.ways import Library, Way, Ways
from diffusion_rt.engines.typed_json import Between, decode
from diffusion_rt.kernels.catalogue import CATALOGUE, SOURCES
from diffusion_rt.kernels.compile import OPTIONS
from diffusion_rt.kernels.driver import Device, Limits

VERSION = 2
MAX_BYTES = 16 << 20
MAX_OPERATIONS = 50_000

Origin = Literal[
    "measured here", "shipped (measured)", "shipped (reckoned)", "cost model", "no choice"
]
"""Where a choice comes from, the most trusted first; `no choice`: there is one way alone."""

Chosen = Callable[[Ways], tuple[Way, Origin]]


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest way of an operation."""

    way: Text
    microseconds: Microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What measurements hold for."""

    chip: Text
    arch: Annotated[int, Between(10, 1000)]
    multiprocessors: Annotated[int, Between(1, 10_000)]
    driver: Text
    kernels: Text  # a hash of all sources and rows of the catalogue
    libraries: Text = ""  # the versions of those that were measured beside them

    @property
    def digest(self) -> str:
        """A short name for it; whether there were libraries is seen without opening one."""
        known = {name: value for name, value in asdict(self).items() if name != "libraries"}
        base = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        return f"{base}-libraries" if self.libraries else base


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    key: Key
    operations: Mapping[Text, Measured]
    overlap: bool | None = None  # whether launches overlap; None where that was not tried


class Tactics:
    """The way for each operation by its sizes, and measurements to keep."""

    def __init__(self, folder: Path, key: Key, tables: Path = TABLES) -> None:
        """Read what was measured and what ships in the folder `tables`.

        A file that is damaged or not for this chip counts as none.
        """
        self.path = path_of(folder, key)
        self.rebuilt: list[str] = []
        """What was wrong with a file that is not used, for the caller to tell."""
        self.overlap: bool | None = None
        """Whether launches that overlap were right and faster here; None where nobody has tried."""
        self._key = key
        self._found: dict[str, Measured] = {}
        self._shipped: list[tuple[Origin, dict[str, str]]] = []
        self._read()
        self._read_shipped(tables)

    def __len__(self) -> int:
        """How many were measured here."""
        return len(self._found)

    def choose(self, ways: Ways) -> Way:
        """The way to take."""
        return self.chosen(ways)[0]

    def chosen(self, ways: Ways) -> tuple[Way, Origin]:
        """The way to take, and who says so; one that is not there any more is passed over."""
        if len(ways.ways) == 1:
            return ways.ways[0], "no choice"
        for origin, name in self._named(ways.sizes):
            for way in ways.ways:
                if way.name == name:
                    return way, origin
        return ways.ways[0], "cost model"

    def knows(self, ways: Ways) -> bool:
        """Whether there is nothing to measure here: one way alone, or the fastest was measured."""
        return self.chosen(ways)[1] in ("no choice", "measured here")

    def put(self, ways: Ways, fastest: Way, microseconds: float) -> None:
        """Note a measurement; `save` keeps it."""
        if len(self._found) >= MAX_OPERATIONS:
            self._found.clear()
        self._found[ways.sizes] = Measured(fastest.name, round(microseconds, 3))

    def forget(self) -> None:
        """Know nothing any more; the file stays until `save`."""
        self._found.clear()
        self.overlap = None

    def locked(self) -> AbstractContextManager[None]:
        """Hold the file against another process that measures; BadInput at once where one does."""
        return locked(self.path.parent, "measure tactics", key=self.path.stem)

    def save(self) -> None:
        """Write everything that is known, whole or not at all."""
        operations = dict(sorted(self._found.items()))
        content = asdict(_Content(key=self._key, operations=operations, overlap=self.overlap))
        body = json.dumps(content, sort_keys=True)
        whole = {"version": VERSION, "sha256": _hash(body), "content": content}
        with writing(self.path) as file:
            file.write(json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")

    def _named(self, sizes: str) -> Iterator[tuple[Origin, str]]:
        if sizes in self._found:
            yield "measured here", self._found[sizes].way
        yield from ((origin, names[sizes]) for origin, names in self._shipped if sizes in names)

    def _read_shipped(self, folder: Path) -> None:
        try:
            for table in read_tables(self._key.arch, folder):
                if table.multiprocessors == self._key.multiprocessors:
                    origin: Origin = f"shipped ({table.source})"  # type: ignore[assignment]
                    self._shipped.append((origin, table.of_sizes()))
        except BadInput as wrong:
            self.rebuilt.append(f"{wrong}; install diffusion-rt again")

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            content = _content(self.path)
            if content.key != self._key:
                raise BadInput("measured on another chip, driver, set of kernels or libraries")
        except BadInput as wrong:
            self.rebuilt.append(f"{self.path}: {wrong}; measured anew by diffusion-rt build")
            return
        self._found = dict(content.operations)
        self.overlap = content.overlap


def _content(path: Path) -> _Content:
    """A file of measurements, whole; BadInput where it is not."""
    whole = strict_json.parse(read_bytes(path, MAX_BYTES), str(path))
    if not isinstance(whole, dict) or whole.keys() != {"version", "sha256", "content"}:
        raise BadInput("no file of tactics")
    if whole["version"] != VERSION:
        raise BadInput("another version's")
    if whole["sha256"] != _hash(json.dumps(whole["content"], sort_keys=True)):
        raise BadInput("damaged (sha256)")
    found: _Content = decode(_Content, whole["content"], "")
    return found


def read_measured(path: Path) -> tuple[Key, Mapping[str, Measured]]:
    """What a file of measurements holds, and what for. BadInput where it is none, or damaged."""
    try:
        content = _content(path)
    except BadInput as wrong:
        said = str(wrong).removeprefix(f"{path}: ")
        raise BadInput(f"{path}: {said}; measure again with diffusion-rt build") from None
    return content.key, content.operations


def of_kind(chip: str, limits: Limits) -> Tactics:
    """What a device of that kind would choose by, with the newest file measured on one, if any.

    Measurements of other kernels than these, or with libraries, are left out. Nothing is written.
    """
    try:
        folder = cache_path("tactics")
    except BadInput:  # a user without a home has measured nothing
        folder = Path(os.devnull)
    key = Key(
        chip=chip,
        arch=limits.arch,
        multiprocessors=limits.multiprocessors,
        driver="",
        kernels=hash_of_kernels(),
    )
    found = []
    for path in folder.glob("tactics-*.json") if folder.is_dir() else ():
        with suppress(BadInput, OSError):
            read = _content(path).key
            if replace(read, chip=key.chip, driver="") == key:
                found.append((path.stat().st_mtime, read))
    return Tactics(folder, max(found, key=lambda one: one[0])[1] if found else key)


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
        multiprocessors=device.limits.multiprocessors,
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

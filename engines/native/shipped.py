"""Tactics that ship with the package: a first run is good before anything was measured here.

One file for each arch, `tables/sm_90.json`; in it a table for each kind of chip, known by its count
of multiprocessors, which decides how tiles fill it. `diffusion-rt bench tactics` writes them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.typed_json import Between, Matching, decode, encode

TABLES = Path(__file__).resolve().parent / "tables"
VERSION = 1
MAX_BYTES = 4 << 20

Text = Annotated[str, Matching(r"[ -~]{0,2000}", "printable text")]
Microseconds = Annotated[float, Between(0.0, 1e9)]
Count = Annotated[int, Between(1, 10_000)]
Source = Literal["measured", "reckoned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The ways of one kind of chip, and where they are from.

    `measured` on `chip` with this driver, on a day, in a run of that name in the records; or
    `reckoned` by the model that orders ways. `ways` has for each way the sizes of the operations
    that it is for, and how long one takes.
    """

    source: Source
    chip: Text
    multiprocessors: Count
    driver: Text = ""
    date: Annotated[str, Matching(r"|\d{4}-\d\d-\d\d", "a day such as 2026-01-31")] = ""
    run: Annotated[str, Matching(r"|[0-9a-f]{16}", "16 hexadecimal digits")] = ""
    ways: Mapping[Text, Mapping[Text, Microseconds]]

    def __post_init__(self) -> None:
        """Refuse a measurement of nobody knows when."""
        told = bool(self.driver and self.date and self.run)
        if told != (self.source == "measured"):
            raise BadInput(f"a {self.source} table: driver, date and run are for measured ones")

    def of_sizes(self) -> dict[str, str]:
        """The name of the way for each size."""
        return {sizes: way for way, known in self.ways.items() for sizes in known}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    version: Annotated[int, Between(VERSION, VERSION)]
    arch: Annotated[int, Between(10, 1000)]
    tables: tuple[Table, ...]


def path_of(arch: int, folder: Path = TABLES) -> Path:
    """The file of an arch, which need not be there."""
    return folder / f"sm_{arch}.json"


def read_tables(arch: int, folder: Path = TABLES) -> tuple[Table, ...]:
    """All tables of an arch, measured ones first; BadInput where its file is broken."""
    path = path_of(arch, folder)
    if not path.exists():
        return ()
    parsed = strict_json.parse(read_bytes(path, MAX_BYTES), str(path))
    try:
        found: _File = decode(_File, parsed, "")
    except BadInput as wrong:
        raise BadInput(f"{path}: {wrong}") from None
    if found.arch != arch:
        raise BadInput(f"{path}: of sm_{found.arch}; give it that name")
    return tuple(sorted(found.tables, key=lambda table: table.source))


def add_table(arch: int, table: Table, folder: Path = TABLES) -> Path:
    """Write a table in the place of one of the same source and kind of chip; the file's path."""
    kind = (table.source, table.multiprocessors)
    others = [t for t in read_tables(arch, folder) if (t.source, t.multiprocessors) != kind]
    tables = sorted([*others, table], key=lambda t: (t.multiprocessors, t.source))
    whole = _File(version=VERSION, arch=arch, tables=tuple(tables))
    path = path_of(arch, folder)
    with writing(path) as file:
        file.write(json.dumps(encode(whole), indent=1).encode() + b"\n")
    return path


def by_way(found: Iterable[tuple[str, str, float]]) -> dict[str, dict[str, float]]:
    """(sizes, way, µs) as `Table.ways`, so ordered that a change of one is a short diff."""
    ways: dict[str, dict[str, float]] = {}
    for sizes, way, microseconds in sorted(found):
        ways.setdefault(way, {})[sizes] = round(microseconds, 2)
    return dict(sorted(ways.items()))

"""Records: one JSON line for each measurement, in one file for each benchmark."""

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from diffusion_rt.bench import machine
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.spread import Amount, Spread
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import locked, read_bytes, writing
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.typed_json import Between, Line, Matching, Word, decode, encode

VERSION = 3
OLDEST = 1  # 1 knows no clocks, device memory, operations and bytes; 2 no runs, parity and load
OURS = "diffusion-rt"
ALL = "all"  # the measure of a contender that was not timed
MAX_BYTES = 64 << 20  # of one file of records

Time = Annotated[str, Matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a time such as 2026-01-31T…Z")]
Commit = Annotated[str, Matching(r"[0-9a-f]{40}", "40 hexadecimal digits")]
Run = Annotated[str, Matching(r"[0-9a-f]{16}", "16 hexadecimal digits")]
Value = Line | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measurement, and all that is needed to make it again.

    Where `against` is given, the values are those of `against` divided by those of `contender`,
    turn by turn: above 1, `contender` needs less. A contender that drew something else than it
    should was not timed: it has no spread, and `wrong` says how far off it was. One that cannot do
    what was asked has none either, and `absent` says why. `parity` is how far what it drew was
    from what it should, 1 being the most that is allowed. `flop` and `nbytes` are what one run of
    it comes to at least: operations, a product and a sum counted as two, and bytes that must move.
    """

    version: Annotated[int, Between(OLDEST, VERSION)] = VERSION
    time: Time
    run: Run | None = None  # the name of the run, drawn at random
    benchmark: Word
    measure: Word
    contender: Word
    against: Word | None = None
    unit: Literal["s", "bytes", "ratio"]
    setting: Mapping[Word, Value]
    spread: Spread | None = None
    wrong: Line | None = None
    absent: Line | None = None
    parity: Amount | None = None
    peak_rss: Annotated[int, Between(0, 1 << 50)] | None = None  # bytes, of its own process
    peak_device: Annotated[int, Between(0, 1 << 50)] | None = None  # bytes on the GPU, of the same
    flop: Annotated[int, Between(0, 1 << 62)] | None = None
    nbytes: Annotated[int, Between(0, 1 << 62)] | None = None
    device: Device
    load: Amount | None = None  # processes that wanted a core in the minute before the run
    versions: Mapping[Word, Line]
    commit: Commit | None
    changed: bool  # the sources differed from the commit
    command: Line

    @property
    def key(self) -> tuple[object, ...]:
        """What the measurement is of: a later record of the same key replaces an earlier one."""
        setting = tuple(sorted(self.setting.items()))
        names = (self.benchmark, self.measure, self.contender, self.against or "")
        return (*names, setting, () if self.anywhere else self.device.key)

    @property
    def anywhere(self) -> bool:
        """Whether it is of a set of packages, which takes the same on every machine."""
        return self.unit != "s" and self.setting.get("torch") == "cuda"

    @property
    def together(self) -> tuple[object, ...]:
        """What the records of one run have in common; only they may be compared."""
        return (self.run or (self.command, self.commit), self.device.key)

    def __str__(self) -> str:
        """The record in one line."""
        subject = f"{self.contender:<13}{self.measure:<14}"
        if self.spread is None:
            why = self.absent or f"wrong: {self.wrong}"
            return f"{subject}not timed, {why}"
        values = (self.spread.p50, self.spread.min, self.spread.max)
        if self.unit == "ratio":
            middle, low, high = (f"{value:.2f}" for value in values)
            return f"{subject}{self.against} takes {middle} times as much ({low} to {high})"
        scale, unit = (1e-6, "MB") if self.unit == "bytes" else (1e3, "ms")
        if self.unit == "s" and self.spread.p50 < 1e-3:
            scale, unit = 1e6, "µs"
        middle, low, high = (f"{value * scale:.2f}" for value in values)
        return f"{subject}{middle:>9} {unit} ({low} to {high}, n={self.spread.n})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What all records of one run share."""

    benchmark: str
    command: str  # as anybody can type it; of a model only its name
    device: Device = field(default_factory=machine.this_cpu)
    versions: Mapping[str, str] = field(default_factory=machine.versions)
    commit: tuple[str | None, bool] = field(default_factory=machine.commit)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    def record(
        self,
        measure: str,
        contender: str,
        setting: Mapping[str, str | int | float],
        *,
        unit: Literal["s", "bytes", "ratio"] = "s",
        spread: Spread | None = None,
        against: str | None = None,
        wrong: str | None = None,
        absent: str | None = None,
        parity: float | None = None,
        peak_rss: int | None = None,
        peak_device: int | None = None,
        flop: int | None = None,
        nbytes: int | None = None,
    ) -> Record:
        """One record of this run, of now."""
        assert _says_one(spread, wrong, absent), "either values or why there are none"
        return Record(
            time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            run=self.run,
            benchmark=self.benchmark,
            measure=measure,
            contender=contender,
            against=against,
            unit=unit,
            setting=setting,
            spread=spread,
            wrong=wrong,
            absent=absent,
            parity=parity,
            peak_rss=peak_rss,
            peak_device=peak_device,
            flop=flop,
            nbytes=nbytes,
            device=self.device,
            load=self.load,
            versions=self.versions,
            commit=self.commit[0],
            changed=self.commit[1],
            command=self.command,
        )


def append(folder: Path, records: Iterable[Record]) -> None:
    """Add records to the files of their benchmarks, `folder/BENCHMARK.jsonl`.

    A file is replaced whole, so that no reader meets half a line. Raises BadInput where the folder
    cannot be written, or where a record would not read back as it is.
    """
    files: dict[str, list[bytes]] = {}
    for record in records:
        line = json.dumps(encode(record), ensure_ascii=False)
        if encode(parse(line.encode(), record.benchmark)) != encode(record):
            raise BadInput(f"{record.benchmark}: a value that JSON cannot hold exactly: {line}")
        files.setdefault(record.benchmark, []).append(line.encode() + b"\n")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "bench"):
        for benchmark, lines in files.items():
            path = folder / f"{benchmark}.jsonl"
            before = read_bytes(path, MAX_BYTES) if path.exists() else b""
            with writing(path) as file:
                file.write(before + b"".join(lines))


def read(folder: Path) -> list[Record]:
    """All records of a folder, oldest first. BadInput names the file and line that is broken."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give the one that diffusion-rt bench wrote to")
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        content = read_bytes(path, MAX_BYTES)
        for number, line in enumerate(content.splitlines(), start=1):
            record = parse(line, f"{path.name}:{number}")
            if record.benchmark != path.stem:
                raise BadInput(f"{path.name}:{number}: a record of {record.benchmark}; move it")
            records.append(record)
    return sorted(records, key=lambda record: record.time)


def parse(line: bytes, what: str) -> Record:
    """The record that a line spells; BadInput, beginning with `what`, where it is broken."""
    try:
        found: Record = decode(Record, strict_json.parse(line, what), "")
    except BadInput as wrong:
        text = str(wrong)
        raise BadInput(text if text.startswith(what) else f"{what}: {text}") from None
    if not _says_one(found.spread, found.wrong, found.absent):
        raise BadInput(f"{what}: a record has one of a spread, a `wrong` and an `absent`")
    return found


def _says_one(*fields: object) -> bool:
    return sum(field is not None for field in fields) == 1


def latest(records: Iterable[Record]) -> list[Record]:
    """Of each measurement the newest record, in the order in which they were first made."""
    newest: dict[tuple[object, ...], Record] = {}
    for record in records:
        newest[record.key] = record
    return list(newest.values())

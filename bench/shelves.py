"""The newest records of each device, and numbers as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffusion_rt.bench.records import ALL, OURS, Record, latest

NOTHING = "not measured"
ENOUGH = {90: 10, 99: 100}  # values of which a percentile says more than the largest does

Rows = list[list[str]]
Setting = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The newest record of every measurement on one device, and all that came before."""

    records: Sequence[Record]
    history: Sequence[Record] = ()

    def all(self, benchmark: str, *, unit: str | None = None) -> list[Record]:
        """The records of a benchmark, in a unit if one is named."""
        return [r for r in self.records if r.benchmark == benchmark and unit in (None, r.unit)]

    def one(
        self,
        benchmark: str,
        measure: str,
        setting: Setting | None = None,
        *,
        contender: str = OURS,
        against: str | None = None,
        beside: Record | None = None,
    ) -> Record | None:
        """The newest record, of any setting where none is given; None where there is none.

        A record that says that the contender is wrong is one of every measure. `beside` allows
        only those of its own run.
        """
        fitting = [
            record
            for record in self.records
            if (record.benchmark, record.contender) == (benchmark, contender)
            and (record.measure, record.against) in ((measure, against), (ALL, None))
            and setting in (None, record.setting)
            and (beside is None or record.together == beside.together)
        ]
        # Of two in one second the later one in the file.
        return max(reversed(fitting), key=lambda record: record.time, default=None)


def seconds(value: float) -> str:
    """Three digits and a unit, such as 12.3 ms."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 0.9995:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µs"


def size(value: float) -> str:
    """Three digits and a decimal unit, such as 412 MB."""
    for factor, unit in ((1e-9, "GB"), (1e-6, "MB")):
        if value * factor >= 0.9995:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e-3)} kB"


def digits(value: float) -> str:
    """Three significant digits, but never a power of ten."""
    for places, below in ((2, 9.995), (1, 99.95)):
        if value < below:
            return f"{value:.{places}f}"
    return f"{value:.0f}"


def amount(record: Record | None) -> str:
    """The median of a record in its unit, or why there is none."""
    if record is None:
        return NOTHING
    if record.spread is None:
        return record.absent or f"wrong: {record.wrong}"
    if record.unit == "ratio":
        return digits(record.spread.p50)
    return (seconds if record.unit == "s" else size)(record.spread.p50)


def ratio(record: Record | None) -> str:
    """The median of a ratio and the range of its turns, such as 1.93 (1.88 to 2.01)."""
    if record is None or record.spread is None:
        return "" if record is None else "wrong"
    found = record.spread
    if found.n == 1:
        return digits(found.p50)
    return f"{digits(found.p50)} ({digits(found.min)} to {digits(found.max)})"


def tail(record: Record, percent: Literal[90, 99]) -> str:
    """A percentile of a record of seconds; nothing where its values are too few to have one."""
    found = record.spread
    if found is None or found.n < ENOUGH[percent]:
        return ""
    return seconds(found.p90 if percent == 90 else found.p99)


def count(record: Record) -> str:
    """How many values a record is of."""
    return "" if record.spread is None else str(record.spread.n)


def shelves(records: Iterable[Record]) -> list[Shelf]:
    """What was measured, device by device, the latest first and with it all that is of none."""
    found: dict[object, list[Record]] = {}
    anywhere: list[Record] = []
    for record in records:
        group = anywhere if record.anywhere else found.setdefault(record.device.key, [])
        group.append(record)
    groups = sorted(found.values(), key=lambda group: group[-1].time, reverse=True)
    return [
        Shelf(latest([*group, *([] if number else anywhere)]), group)
        for number, group in enumerate(groups)
    ]


def pixels(record: Record) -> int:
    """How many pixels a picture of the record has."""
    width, height = str(record.setting["size"]).split("x")
    return int(width) * int(height)

"""What the GPU run finds out, row by row: kept at once, so that an interruption loses little."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench import machine
from diffusion_rt.bench.gpu_chip import Chip, Clocks
from diffusion_rt.bench.records import OURS, Origin, Record, append
from diffusion_rt.bench.spread import Spread, median, spread
from diffusion_rt.engines.typed_json import encode

RIGHT, TIME = "gpu-right", "gpu-time"  # the two files of records
PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc", "triton", "nvidia-cudnn-cu13", "nvidia-cublas")

Outcome = Literal["right", "wrong", "timed", "untimed", "not run", "noted", "lost"]
Setting = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the final table."""

    part: str
    name: str
    outcome: Outcome
    note: str
    shown: bool = True  # in the short table at the end

    @property
    def bad(self) -> bool:
        """Whether something is known to be wrong."""
        return self.outcome in ("wrong", "lost")


def parse_row(line: str) -> Row | None:
    """The row that a line of a part's output spells; None for whatever else libraries print."""
    try:
        found = json.loads(line)
        row = Row(**found["row"])
    except (ValueError, TypeError, KeyError):
        return None
    return row if row.outcome in get_args(Outcome) else None


def print_json(row: Row) -> None:
    """A row as the line that `parse_row` reads."""
    print(json.dumps({"row": asdict(row)}), flush=True)


@dataclass(slots=True)
class Sink:
    """Where the rows of one part go: a line on standard output each, and records in a folder."""

    part: str
    chip: Chip
    output: Path | None  # None keeps no records
    deadline: float  # seconds since 1970
    command: str
    commit: str | None = None  # of the sources, where their history is not here
    tell: Callable[[Row], None] = print_json
    graphs: Path | None = None  # of a model of full size, with weights or without
    _origins: dict[str, Origin] = field(default_factory=dict)
    _clocks: Clocks | None = None

    @property
    def late(self) -> bool:
        """Whether no row may begin any more."""
        return time.time() > self.deadline

    def say(self, name: str, outcome: Outcome, note: str, *, shown: bool = True) -> None:
        """A row without a record."""
        self.tell(Row(self.part, name, outcome, one_line(note), shown))

    def checked(self, name: str, error: float, setting: Setting) -> None:
        """A result against its reference: `error` is in units of what is allowed, so 1 is the most.

        A result that holds NaN or was never written has an infinite error.
        """
        if error <= 1:
            self._keep(RIGHT, name, setting, "ratio", [error])
            how = f"{error:.2f} of the error allowed" if error else "exactly"
            self.say(name, "right", f"{how}; {_words(setting)}" if setting else how)
        else:
            self.failed(name, f"{error:.3g} times the error allowed", setting)

    def failed(self, name: str, why: str, setting: Setting) -> None:
        """Something that is wrong, or broke."""
        self._keep(RIGHT, name, setting, "ratio", wrong=one_line(why))
        self.say(name, "wrong", f"{why}; {_words(setting)}")

    def timed(
        self,
        name: str,
        seconds: Sequence[float],
        setting: Setting,
        *,
        contender: str = OURS,
        nbytes: int = 0,
        flop: int = 0,
        peak_device: int | None = None,
        note: str = "",
        shown: bool = True,
    ) -> float:
        """Times of one thing; bytes moved and operations of each. Its median, in seconds.

        Those of a simulator are neither kept nor told.
        """
        middle = median(seconds)
        if self.chip.simulated:
            self.say(name, "untimed", _words(setting), shown=False)
            return middle
        self._keep(
            TIME,
            name,
            setting,
            "s",
            seconds,
            contender=contender,
            flop=flop or None,
            nbytes=nbytes or None,
            peak_device=peak_device,
        )
        rate = f", {nbytes / middle / 1e12:.2f} TB/s" if nbytes and middle else ""
        rate += f", {flop / middle / 1e12:.0f} TFLOP/s" if flop and middle else ""
        by = f" by {contender}" if contender != OURS else ""
        text = f"{middle * 1e6:.2f} µs{by}{rate}; {_words(setting)}"
        self.say(name, "timed", text + (f"; {note}" if note else ""), shown=shown)
        return middle

    def not_run(self, name: str, why: str) -> None:
        """Something that could not be done here."""
        self.say(name, "not run", why)

    def _keep(
        self,
        benchmark: str,
        measure: str,
        setting: Setting,
        unit: Literal["s", "ratio"],
        values: Sequence[float] = (),
        *,
        wrong: str | None = None,
        contender: str = OURS,
        flop: int | None = None,
        nbytes: int | None = None,
        peak_device: int | None = None,
    ) -> None:
        if self.output is None:
            return
        found: Spread | None = spread(values) if wrong is None else None
        record = self._origin(benchmark).record(
            measure,
            contender,
            setting,
            unit=unit,
            spread=found,
            wrong=wrong,
            flop=flop,
            nbytes=nbytes,
            peak_device=peak_device,
        )
        if self._clocks is not None:
            record = replace(record, device=self._clocks.on(record.device))
        if self.chip.simulated:
            append_simulated(self.output, record)
        else:
            append(self.output, [record])

    def _origin(self, benchmark: str) -> Origin:
        if benchmark not in self._origins:
            versions = {**machine.versions(), "cuda": self.chip.cuda}
            device = self.chip.device
            for package in PACKAGES:
                try:
                    versions[package] = metadata.version(package)
                except metadata.PackageNotFoundError:
                    continue
            if not self.chip.simulated:
                self._clocks = self._clocks or Clocks(self.chip.name)
            self._origins[benchmark] = Origin(
                benchmark=benchmark,
                command=self.command,
                device=device,
                versions=versions,
                commit=(self.commit, False) if self.commit else machine.commit(),
            )
        return self._origins[benchmark]


def append_simulated(folder: Path, record: Record) -> None:
    """Keep a record that no report takes: its field `simulated` is none that a record may have."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{record.benchmark}.jsonl").open("a") as file:
        file.write(json.dumps(encode(record) | {"simulated": True}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def excess(got: NDArray[Any], plain: NDArray[Any], truth: NDArray[np.float64]) -> float:
    """The error of a result in units of what is allowed; infinite where it is not finite.

    Allowed is twice the error of plain code in the same dtype, at its worst element and in the
    root of the mean square alike, and never less than the rounding of one result.
    """
    wide = got.astype(np.float64)
    if wide.shape != truth.shape or not np.isfinite(wide).all():
        return math.inf
    rounding = float(np.finfo(plain.dtype).eps) / 2
    mine, theirs = wide - truth, plain.astype(np.float64) - truth
    # Half a unit in the last place is the worst of a rounding, a quarter of that its usual size.
    most = 2 * max(_most(theirs), _most(truth) * rounding)
    usual = 2 * max(_usual(theirs), _usual(truth) * rounding / 4)
    return max(_share(_most(mine), most), _share(_usual(mine), usual))


def _most(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).max(initial=0))


def _usual(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values * values))) if values.size else 0.0


def _share(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def one_line(text: str) -> str:
    """Any text as a short line."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return " ".join(words)[:300] or "no message"


def _words(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items()) or "no setting"

"""What the GPU run is to show of SDXL at 1024x1024, and how far its records are from that."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_rt.bench.gpu_tables import TIME, TORCH
from diffusion_rt.bench.records import OURS, Record, read

Figure = Callable[[Sequence[Record]], float | None]
SIZE = "1024x1024"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure, the least that is wanted of it, and where it is to go."""

    name: str
    figure: Figure
    first: float
    goal: float
    unit: str  # ms, s, or x: how many times as much another takes, of which more is better

    def line(self, records: Sequence[Record]) -> str:
        """The figure beside what is wanted."""
        found = self.figure(records)
        more = self.unit == "x"
        wanted = f"{'at least' if more else 'at most'} {self.first:g} {self.unit}"
        wanted += f", then {self.goal:g}" if self.goal != self.first else ""
        if found is None:
            return f"  {self.name}: not measured ({wanted})"
        good = found >= self.first if more else found <= self.first
        verdict = "met" if good else "MISSED"
        return f"  {self.name}: {found:.3g} {self.unit}, {verdict} ({wanted})"


def verdicts(folder: Path) -> str:
    """A line for each target; of a folder of simulated records nothing is measured."""
    try:
        records = read(folder)
    except ValueError:
        records = []
    return "\n".join(["targets:", *(target.line(records) for target in TARGETS)])


def _fastest(measure: str, scale: float) -> Figure:
    """The native engine's least median, in the target's unit."""

    def figure(records: Sequence[Record]) -> float | None:
        found = [
            record.spread.p50 * scale
            for record in records
            if (record.benchmark, record.measure) == (TIME, measure)
            and str(record.setting.get("engine", "")).startswith("native")
            and record.setting.get("size") == SIZE
            and record.spread is not None
        ]
        return min(found, default=None)

    return figure


def _against(peer: str) -> Figure:
    def figure(records: Sequence[Record]) -> float | None:
        found = [
            record.spread.p50
            for record in records
            if (record.benchmark, record.measure, record.against) == ("stages", "picture", peer)
            and record.setting.get("size") == SIZE
            and record.spread is not None
        ]
        return found[-1] if found else None

    return figure


def _attention(tokens: int, rows: int) -> Figure:
    """PyTorch's best backend over ours, on data that no cache holds."""

    def best(records: Iterable[Record], contender: str) -> float | None:
        found = [
            record.spread.p50
            for record in records
            if record.measure == "attention"
            and record.contender == contender
            and record.setting.get("queries") == record.setting.get("keys") == tokens
            and record.setting.get("cache", "cold") == "cold"
            and int(record.setting.get("images", 0)) * int(record.setting.get("heads", 0)) == rows
            and record.spread is not None
        ]
        return min(found, default=None)

    def figure(records: Sequence[Record]) -> float | None:
        timed = [record for record in records if record.benchmark == TIME]
        ours, theirs = best(timed, OURS), best(timed, TORCH)
        return None if ours is None or theirs is None else theirs / ours

    return figure


TARGETS = (
    Target("one step with guidance", _fastest("step", 1e3), 28, 22, "ms"),
    Target("30 steps, prompt to pixels", _fastest("picture", 1), 0.95, 0.70, "s"),
    Target("diffusers under torch.compile, 30 steps", _against("compile"), 1.3, 2, "x"),
    Target("diffusers, 30 steps", _against("diffusers"), 1.3, 2, "x"),
    Target("VAE decoder", _fastest("decode", 1e3), 40, 25, "ms"),
    Target("process start to first picture", _fastest("first-picture", 1), 15, 8, "s"),
    Target("best of torch's attention, 20 heads x 4,096", _attention(4096, 20), 1, 1, "x"),
    Target("best of torch's attention, 40 heads x 1,024", _attention(1024, 40), 1, 1, "x"),
)

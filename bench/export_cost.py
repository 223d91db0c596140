"""What exporting a checkpoint of full size costs: time, memory, bytes on the disk."""

import sys
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from diffusion_rt.bench.launch import launch
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import NAME as MANIFEST
from diffusion_rt.export.checkpoint import open_checkpoint


@dataclass(slots=True)
class Exports:
    """The exports of one checkpoint, each in a process of its own."""

    seconds: list[float] = field(default_factory=list)
    peak_rss: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)  # bytes beside the checkpoint


def exports(checkpoint: Path, repeats: int, tell: Tell) -> Exports:
    """Export a checkpoint in its own folder, so that its weights are neither copied nor changed."""
    found = Exports()
    command = [sys.executable, "-P", "-m", "diffusion_rt", "export", str(checkpoint)]
    for turn in range(repeats):
        tell(f"export: run {turn + 1} of {repeats}")
        remove_graphs(checkpoint)
        before = sizes(checkpoint)
        ran = launch([*command, "--no-check", "--format", "json"])
        after = sizes(checkpoint)
        found.seconds.append(ran.seconds)
        found.peak_rss.append(ran.peak_rss)
        found.written.append(sum(size for path, size in after.items() if path not in before))
    return found


def weights_of(checkpoint: Path) -> int:
    """How many weights a checkpoint has.

    Raises BadInput for what cannot be exported, and where a measured export would replace one that
    somebody made.
    """
    tables = open_checkpoint(checkpoint).tables.values()
    for path in (checkpoint / MANIFEST, *checkpoint.glob("*.onnx")):
        if path.exists():
            raise BadInput(
                f"{path}: exported already, and a measured export begins anew; take the graphs and "
                f"{MANIFEST} away, or name a copy"
            )
    return sum(prod(tensor.shape) for table in tables for tensor in table.tensors.values())


def records_of(
    origin: Origin, found: Exports, setting: dict[str, str | int | float]
) -> list[Record]:
    """Seconds, peak memory and bytes written."""
    peak = int(max(found.peak_rss))
    seconds, memory, written = map(spread, (found.seconds, found.peak_rss, found.written))
    return [
        origin.record("export", OURS, setting, spread=seconds, peak_rss=peak),
        origin.record("peak-rss", OURS, setting, unit="bytes", spread=memory),
        origin.record("written", OURS, setting, unit="bytes", spread=written),
    ]


def sizes(folder: Path) -> dict[Path, int]:
    """Every file below a folder and its size in bytes."""
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def remove_graphs(folder: Path) -> None:
    """Take away what an export before put beside a checkpoint."""
    for path in (*folder.glob("*.onnx"), folder / MANIFEST):
        path.unlink(missing_ok=True)

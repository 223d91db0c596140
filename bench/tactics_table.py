"""Tables of tactics that ship: of what a GPU run has measured, or reckoned for a chip."""

import tarfile
import tempfile
from pathlib import Path

from diffusion_rt.bench.gpu_model import BUILT, TACTICS
from diffusion_rt.bench.gpu_rows import TIME
from diffusion_rt.bench.records import Record, read
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.native import reckon
from diffusion_rt.engines.native.chips import roof
from diffusion_rt.engines.native.needed import target_of
from diffusion_rt.engines.native.shipped import Table, by_way, read_tables
from diffusion_rt.engines.native.tactics import read_measured
from diffusion_rt.engines.trt.buckets import Bucket, parse_buckets

GRAPHS = Path(__file__).resolve().parent / "graphs" / "sdxl-base.tar.xz"
ROWS = (2, 1)  # with guidance and without


def measured(folder: Path) -> tuple[int, Table]:
    """The arch, and the table of what `bench/gpu.py --output folder` has measured.

    Raises BadInput where it has not, or has with libraries beside our kernels.
    """
    key, known = read_measured(folder / TACTICS)
    if key.libraries:
        raise BadInput(f"{folder / TACTICS}: of {key.libraries} too; build without --libraries")
    record = _record(folder)
    return key.arch, Table(
        source="measured",
        chip=key.chip,
        multiprocessors=key.multiprocessors,
        driver=key.driver,
        date=record.time[:10],
        run=record.run or "",
        ways=by_way((sizes, one.way, one.microseconds) for sizes, one in known.items()),
    )


def reckoned(
    chip: str, buckets: tuple[Bucket, ...] | None = None, graphs: Path = GRAPHS
) -> tuple[int, Table]:
    """The arch, and the table of SDXL base: at the nine usual sizes, or those given.

    Raises BadInput where the chip is unknown, or the graphs of a checkout are not here.
    """
    top = roof(chip)
    if not graphs.exists():
        raise BadInput(f"{graphs}: not here, this is no checkout; run it in one")
    sizes = [(bucket.width, bucket.height) for bucket in buckets or parse_buckets("sdxl")]
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(graphs) as archive:
            archive.extractall(name, filter="data")
        model = open_model(Path(name), weights=False)
        target = target_of(model, "float16", buckets=sizes, rows=ROWS)
        return top.arch, reckon.reckoned(target, top)


def compared(arch: int, table: Table, folder: Path) -> str:
    """How many sizes a table has, and what is other than in the one that was reckoned."""
    new = _by_sizes(table)
    said = f"{len(new)} sizes, {table.source} for {table.multiprocessors} multiprocessors"
    for old in read_tables(arch, folder):
        if (old.source, old.multiprocessors) == ("reckoned", table.multiprocessors):
            known = _by_sizes(old)
            both = new.keys() & known.keys()
            other = sum(new[sizes][0] != known[sizes][0] for sizes in both)
            now, then = (sum(of[sizes][1] for sizes in both) / 1e3 for of in (new, known))
            said += (
                f"; {len(both)} were reckoned before, {other} of them to run in another way: "
                f"{now:.2f} ms, each once, where it was {then:.2f} ms"
            )
    return said


def _by_sizes(table: Table) -> dict[str, tuple[str, float]]:
    return {
        sizes: (way, time) for way, known in table.ways.items() for sizes, time in known.items()
    }


def _record(folder: Path) -> Record:
    """The record of the build that has measured."""
    for record in reversed(read(folder)):
        named = (record.benchmark, record.measure, record.setting.get("engine"))
        if named == (TIME, "build", ", ".join(BUILT)) and record.run:
            return record
    raise BadInput(f"{folder}: no record of a native build; run bench/gpu.py --parts native again")

"""Markdown tables of records: one function for each table, one block for each device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffusion_rt.bench.contender import MEASURES
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import ALL, OURS, Record, latest

EAGER, COMPILED = "diffusers", "compile"
NAMES = {OURS: "diffusion-rt", EAGER: "diffusers", COMPILED: "torch.compile"}
SHOWN = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers")  # versions under a table
NOTHING = "not measured"

Rows = list[list[str]]
Setting = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The newest record of every measurement on one device."""

    records: Sequence[Record]

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
    ) -> Record | None:
        """The newest record, of any setting where none is given; None where there is none.

        A record that says that the contender is wrong is one of every measure.
        """
        fitting = [
            record
            for record in self.records
            if (record.benchmark, record.contender) == (benchmark, contender)
            and (record.measure, record.against) in ((measure, against), (ALL, None))
            and setting in (None, record.setting)
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
        return f"wrong: {record.wrong}"
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


def beside(shelf: Shelf, ours: Record, measure: str, peer: str = EAGER) -> list[str]:
    """What a peer took for the same, and how many times as much as we that is."""
    setting = ours.setting
    theirs = shelf.one(ours.benchmark, measure, setting, contender=peer)
    pair = shelf.one(ours.benchmark, measure, setting, against=peer)
    return [amount(theirs) if theirs else "", ratio(pair)]


def summary(shelf: Shelf) -> Rows:
    """What people ask first, ours beside diffusers eager."""
    rows = [["What", NAMES[OURS], NAMES[EAGER], "diffusers takes … times as much"]]

    def row(what: str, benchmark: str, measure: str, setting: Setting | None = None) -> None:
        ours = shelf.one(benchmark, measure, setting)
        if ours is not None:
            rows.append([what, amount(ours), *beside(shelf, ours, measure)])

    for record in _drawn(shelf, ("picture", "step"), images=1, main=True):
        what = "prompt to picture" if record.measure == "picture" else "one step of it"
        where = f"`{record.setting['model']}`, {record.setting['size']}, {record.setting['steps']}"
        row(f"{what}: {where} steps", "end-to-end", record.measure, record.setting)
    for measure, what in (
        ("first-picture", "process start to first picture"),
        ("peak-rss", "peak memory of that"),
        ("installed", "installed size of what it takes to draw, PyTorch for CPUs alone"),
        ("import", "import"),
    ):
        row(what, "startup", measure, {"torch": "cpu"} if measure == "installed" else None)
    for record in shelf.all("step", unit="s"):
        if record.contender == OURS:
            setting = record.setting
            rows_of = "with" if float(setting["guidance_scale"]) > 1 else "without"
            what = f"UNet of `{setting['model']}`, {setting['size']}, {rows_of} guidance"
            row(what, "step", record.measure, setting)
    for record in shelf.all("stages", unit="s"):
        if record.measure == "own" and record.setting.get("engine") == "null":
            setting = record.setting
            what = f"our time around the UNet in a step, `{setting['model']}`, {setting['size']}"
            row(what, "stages", "own", setting)
    for record in shelf.all("export", unit="s"):
        model = record.setting["model"]
        row(f"export of `{model}`, without its check", "export", "export", record.setting)
        row("peak memory of that", "export", "peak-rss", record.setting)
    return rows


def end_to_end(shelf: Shelf) -> Rows:
    """Every case that was drawn, by each contender."""
    head = ["model", "size", "images", "steps", NAMES[OURS], "p90", "p99"]
    rows = [[*head, NAMES[EAGER], "times", NAMES[COMPILED], "times"]]
    for record in _drawn(shelf, ("picture",)):
        setting = record.setting
        cells = [str(setting[name]) for name in ("model", "size", "images", "steps")]
        assert record.spread is not None
        cells += [amount(record), seconds(record.spread.p90), seconds(record.spread.p99)]
        for peer in (EAGER, COMPILED):
            cells += beside(shelf, record, "picture", peer)
        rows.append(cells)
    return rows


def stages(shelf: Shelf) -> Rows:
    """Where the time of a picture goes."""
    rows = [["model", "size", "engine", "stage", NAMES[OURS], NAMES[EAGER], "times"]]
    for record in shelf.all("stages", unit="s"):
        if record.contender != OURS:
            continue
        setting = record.setting
        engine = str(setting.get("engine", "ort"))
        if engine == "null" and record.measure != "own":
            continue  # what takes no arithmetic says nothing of the stages
        what = MEASURES[record.measure]
        cells = [str(setting["model"]), str(setting["size"]), engine, what, amount(record)]
        rows.append([*cells, *beside(shelf, record, record.measure)])
    return rows


def startup(shelf: Shelf) -> Rows:
    """A fresh process, and what must be installed for it."""
    rows = [["What", NAMES[OURS], NAMES[EAGER], "times"]]
    for measure, what in (
        ("first-picture", "process start to the picture on the disk"),
        ("first-exit", "process start to its end"),
        ("peak-rss", "peak memory"),
        ("import", "import, from process start to end"),
        ("help", "`--help`, from process start to end"),
        ("installed", "installed size"),
    ):
        ours = shelf.one("startup", measure)
        if ours is not None:
            rows.append([what, amount(ours), *beside(shelf, ours, measure)])
    python = shelf.one("startup", "import", contender="python")
    if python is not None:
        rows.append(["of that Python itself", amount(python), amount(python), ""])
    return rows


def step(shelf: Shelf) -> Rows:
    """The UNet alone."""
    head = ["model", "size", "guidance scale", NAMES[OURS], "peak memory", NAMES[EAGER]]
    rows = [[*head, "peak memory", "times"]]
    for record in shelf.all("step", unit="s"):
        if record.contender != OURS:
            continue
        setting = record.setting
        cells = [str(setting[name]) for name in ("model", "size", "guidance_scale")]
        theirs = shelf.one("step", record.measure, setting, contender=EAGER)
        for found in (record, theirs):
            peak = found.peak_rss if found is not None else None
            cells += [amount(found), NOTHING if peak is None else size(peak)]
        rows.append([*cells, beside(shelf, record, record.measure)[1]])
    return rows


def export(shelf: Shelf) -> Rows:
    """Checkpoint to ONNX."""
    rows = [["checkpoint", "weights", "time", "peak memory", "written"]]
    for record in shelf.all("export", unit="s"):
        setting = record.setting
        weights = f"{float(setting['weights']) / 1e6:,.0f} million"
        others = (shelf.one("export", name, setting) for name in ("peak-rss", "written"))
        rows.append([str(setting["model"]), weights, amount(record), *map(amount, others)])
    return rows


TABLES: dict[str, Callable[[Shelf], Rows]] = {
    "summary": summary,
    "end-to-end": end_to_end,
    "stages": stages,
    "startup": startup,
    "step": step,
    "export": export,
}


def table(name: str, records: Iterable[Record]) -> str:
    """One of TABLES in Markdown, with the device and versions under it; for each device anew."""
    blocks = []
    for device, shelf in shelves(records).items():
        head, *rows = TABLES[name](shelf)
        if rows:
            lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
            blocks.append("\n".join(lines) + f"\n\n{_caption(device, shelf)}")
    return "\n\n".join(blocks) or "Not measured yet."


def shelves(records: Iterable[Record]) -> dict[Device, Shelf]:
    """The newest records of each device."""
    found: dict[Device, list[Record]] = {}
    for record in latest(records):
        found.setdefault(record.device, []).append(record)
    return {device: Shelf(group) for device, group in found.items()}


def pixels(record: Record) -> int:
    """How many pixels a picture of the record has."""
    width, height = str(record.setting["size"]).split("x")
    return int(width) * int(height)


def _drawn(
    shelf: Shelf, measures: Sequence[str], images: int | None = None, *, main: bool = False
) -> list[Record]:
    """Our own timed records of drawing, ordered by model, size and number of images.

    `main` leaves only those of the setting with the most timed runs.
    """
    found = [
        record
        for record in shelf.all("end-to-end", unit="s")
        if record.contender == OURS
        and record.measure in measures
        and record.spread is not None
        and images in (None, record.setting["images"])
    ]
    if main and found:
        most = max(found, key=lambda r: r.spread.n if r.spread and r.measure == "picture" else 0)
        found = [record for record in found if record.setting == most.setting]
    order = {name: place for place, name in enumerate(measures)}
    return sorted(
        found,
        key=lambda r: (
            str(r.setting["model"]),
            int(r.setting["steps"]),
            int(r.setting["images"]),
            pixels(r),
            order[r.measure],
        ),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _caption(device: Device, shelf: Shelf) -> str:
    newest = max(shelf.records, key=lambda record: record.time)
    found = [f"{name} {newest.versions[name]}" for name in SHOWN if name in newest.versions]
    return f"{device}; {', '.join(found)}."

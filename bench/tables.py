"""Markdown tables of records: one function for each table, one block for each device."""

from collections.abc import Callable, Iterable, Sequence

from diffusion_rt.bench import gpu_tables
from diffusion_rt.bench.contender import MEASURES
from diffusion_rt.bench.flags import ENGINES
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import OURS, Record
from diffusion_rt.bench.shelves import (
    NOTHING,
    Rows,
    Setting,
    Shelf,
    amount,
    digits,
    pixels,
    ratio,
    seconds,
    shelves,
    size,
)

EAGER, COMPILED = "diffusers", "compile"
NAMES = {OURS: "diffusion-rt", EAGER: "diffusers", COMPILED: "torch.compile"}
SHOWN = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers")  # versions under a table


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
        compiled = beside(shelf, record, record.measure, COMPILED)
        if compiled[0]:
            rows.append([f"the same, diffusers under {NAMES[COMPILED]}", amount(record), *compiled])
    for measure, what in (
        ("first-picture", "process start to first picture"),
        ("peak-rss", "peak memory of that"),
        ("installed", "installed size of what it takes to draw, PyTorch for CPUs alone"),
        ("import", "import"),
    ):
        row(what, "startup", measure, {"torch": "cpu"} if measure == "installed" else None)
    for record in shelf.all("startup", unit="bytes"):
        if (record.measure, record.contender) == ("download", OURS):
            what = f"download of what it takes on a GPU, engine `{record.setting['engine']}`"
            row(what, "startup", "download", record.setting)
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
    seen = {record.contender for record in shelf.all("end-to-end")}
    peers = [EAGER, COMPILED, *(name for name in ENGINES if name in seen)]
    rows = [[*head, *(cell for peer in peers for cell in (NAMES.get(peer, peer), "times"))]]
    for record in _drawn(shelf, ("picture",)):
        setting, found = record.setting, record.spread
        cells = [str(setting[name]) for name in ("model", "size", "images", "steps")]
        ends = ["", ""] if found is None else [seconds(found.p90), seconds(found.p99)]
        cells += [amount(record), *ends]
        for peer in peers:
            cells += beside(shelf, record, "picture", peer)
        rows.append(cells)
    return rows


def stages(shelf: Shelf) -> Rows:
    """Where the time of a picture goes."""
    peers = (EAGER, COMPILED)
    head = ["model", "size", "engine", "stage", NAMES[OURS]]
    rows = [[*head, *(cell for peer in peers for cell in (NAMES[peer], "times"))]]
    for record in shelf.all("stages", unit="s"):
        if record.contender != OURS:
            continue
        setting = record.setting
        engine = str(setting.get("engine", "ort"))
        if engine == "null" and record.measure != "own":
            continue  # what takes no arithmetic says nothing of the stages
        what = MEASURES[record.measure]
        cells = [str(setting["model"]), str(setting["size"]), engine, what, amount(record)]
        for peer in peers:
            cells += beside(shelf, record, record.measure, peer)
        rows.append(cells)
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
    for record in shelf.all("startup", unit="bytes"):
        if (record.measure, record.contender) == ("download", OURS):
            version = record.versions.get("torch", "")
            what = f"download, for `{record.setting['engine']}` and PyTorch {version} on a GPU"
            rows.append([what, amount(record), *beside(shelf, record, "download")])
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


def chip(shelf: Shelf) -> Rows:
    """What a processor can do at most."""
    rows = [["what", "by", "time", "rate"]]
    for record in shelf.all("chip", unit="s"):
        if record.spread is None:
            continue
        setting, middle = record.setting, record.spread.p50
        if record.measure == "matmul":
            what = f"{setting['dtype']} product, {setting['m']} x {setting['k']} x {setting['n']}"
            rate = f"{digits((record.flop or 0) / middle / 1e9)} GFLOP/s"
        else:
            what = f"copy of {size(float(setting['copied']))}"
            rate = f"{digits((record.nbytes or 0) / middle / 1e9)} GB/s, read and written"
        rows.append([what, record.contender, amount(record), rate])
    return rows


TABLES: dict[str, Callable[[Shelf], Rows]] = {
    "summary": summary,
    "end-to-end": end_to_end,
    "stages": stages,
    "startup": startup,
    "step": step,
    "export": export,
    "chip": chip,
    "build": gpu_tables.build,
    "gpu-steps": gpu_tables.steps,
    "gpu-end-to-end": gpu_tables.pictures,
    "gpu-kernels": gpu_tables.kernels,
    "gpu-attention": gpu_tables.attention,
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
        and (record.absent is not None or (record.measure in measures and record.spread))
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
            order.get(r.measure, 0),
        ),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _caption(device: Device, shelf: Shelf) -> str:
    # Sizes of downloads are of versions that are not installed.
    here = [record for record in shelf.records if record.measure != "download"] or shelf.records
    newest = max(here, key=lambda record: record.time)
    found = [f"{name} {newest.versions[name]}" for name in SHOWN if name in newest.versions]
    return f"{device}; {', '.join(found)}."

"""Markdown tables of records: one function for each table, one block for each device."""

from collections.abc import Callable, Iterable, Sequence

from diffusion_rt.bench import gpu_tables
from diffusion_rt.bench.contender import MEASURES
from diffusion_rt.bench.flags import ENGINES, IDLE
from diffusion_rt.bench.operators import ARITHMETIC, REST, STEP
from diffusion_rt.bench.records import OURS, Record
from diffusion_rt.bench.shelves import (
    NOTHING,
    Rows,
    Setting,
    Shelf,
    amount,
    count,
    digits,
    pixels,
    ratio,
    seconds,
    shelves,
    size,
    tail,
)

EAGER, COMPILED = "diffusers", "compile"
NAMES = {
    OURS: "diffusion-rt",
    EAGER: "diffusers",
    COMPILED: "torch.compile",
    "ort": "ONNX Runtime",
}
SHOWN = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers")  # versions under a table
# What the summary tells of drawing, by name: the model that ships at its own settings, the largest
# size and the most images that it is measured at.
HEADLINE: Setting = {
    "model": "shapes-xl",
    "size": "128x128",
    "images": 1,
    "steps": 20,
    "sampler": "euler",
    "guidance_scale": 3.0,
}
LARGE, MANY = "256x256", 8
# How the contenders of `step` took turns, by the setting of its records.
TURNS = {
    "alternating": "in turn",
    "reopened": "opened in turn",
    "apart": "one after the other",
}
# How long it takes to import, as it is measured now and as records before version 3 have it.
IMPORTS = (
    ("imported", "process start to the end of the import"),
    ("import", "a process that only imports, from start to end"),
)
# Sets of packages: the one that is installed here, and what is told of those for a GPU.
CPU_SET: Setting = {"torch": "cpu"}
SETS = {"installed": "installed size", "download": "download"}


def beside(shelf: Shelf, ours: Record, measure: str, peer: str = EAGER) -> list[str]:
    """What a peer took for the same in the same run, and how many times as much as we that is."""
    setting = ours.setting
    theirs = shelf.one(ours.benchmark, measure, setting, contender=peer, beside=ours)
    pair = shelf.one(ours.benchmark, measure, setting, against=peer, beside=ours)
    return [amount(theirs) if theirs else "", ratio(pair)]


def summary(shelf: Shelf) -> Rows:
    """What people ask first, ours beside diffusers eager."""
    rows = [["What", NAMES[OURS], NAMES[EAGER], "diffusers takes … times as much", "n"]]

    def add(what: str, ours: Record | None, peer: str = EAGER) -> None:
        if ours is not None:
            rows.append([what, amount(ours), *beside(shelf, ours, ours.measure, peer), count(ours)])

    def drawn(benchmark: str, measure: str, **changes: str | int) -> Record | None:
        return _headline(shelf, benchmark, measure, {**HEADLINE, **changes})

    model, size, steps = (HEADLINE[name] for name in ("model", "size", "steps"))
    same = f"the same, diffusers under {NAMES[COMPILED]}"
    for what, ours in (
        (f"prompt to picture: `{model}`, {size}, {steps} steps", drawn("end-to-end", "picture")),
        ("one step of it", drawn("end-to-end", "step")),
        (f"prompt to picture at {LARGE}", drawn("end-to-end", "picture", size=LARGE)),
        (f"{MANY} pictures together", drawn("end-to-end", "picture", images=MANY)),
    ):
        add(what, ours)
        if ours is not None and beside(shelf, ours, ours.measure, COMPILED)[0]:
            add(same, ours, COMPILED)
    for measure, what in (
        ("first-picture", "process start to first picture"),
        ("peak-rss", "peak memory of that"),
        ("installed", "installed size of what it takes to draw, PyTorch for CPUs alone"),
        *IMPORTS,
    ):
        add(what, shelf.one("startup", measure, CPU_SET if measure == "installed" else None))
    for record in _sets(shelf):
        add(
            f"{SETS[record.measure]} of what it takes on a GPU, `{record.setting['engine']}`",
            record,
        )
    for record in shelf.all("step", unit="s"):
        if record.contender == OURS:
            model, size = record.setting["model"], record.setting["size"]
            guided = "with" if float(record.setting["guidance_scale"]) > 1 else "without"
            what = f"UNet of `{model}`, {size}, {guided} guidance, {_turns(record)}"
            rows.append([what, amount(record), *_alone(shelf, record), count(record)])
    add("our time around the UNet in a step of the first row", drawn("stages", "own"))
    for record in shelf.all("stages", unit="s"):
        if record.measure == "own" and record.setting.get("engine") == "null":
            size = record.setting["size"]
            add(f"the same at {size}, with an engine that computes nothing", record)
    for record in shelf.all("stages", unit="s"):
        if record.setting.get("engine") in IDLE:
            add(f"the host's at {_captured(record)}", record)
    for record in shelf.all("export", unit="s"):
        model = record.setting["model"]
        add(f"export of `{model}`, without its check", record)
        add("peak memory of that", shelf.one("export", "peak-rss", record.setting, beside=record))
    return rows


def end_to_end(shelf: Shelf) -> Rows:
    """Every case that was drawn, by each contender."""
    head = ["model", "size", "images", "steps", "n", NAMES[OURS], "p90"]
    found = _drawn(shelf)
    long = any(tail(record, 99) for record in found)
    seen = {record.contender for record in shelf.all("end-to-end")}
    peers = [EAGER, COMPILED, *(name for name in ENGINES if name in seen)]
    titles = [cell for peer in peers for cell in (NAMES.get(peer, peer), "times")]
    rows = [[*head, *(["p99"] if long else []), *titles]]
    for record in found:
        setting = record.setting
        cells = [str(setting[name]) for name in ("model", "size", "images", "steps")]
        cells += [count(record), amount(record), tail(record, 90)]
        cells += [tail(record, 99)] if long else []
        for peer in peers:
            cells += beside(shelf, record, "picture", peer)
        rows.append(cells)
    return rows


def stages(shelf: Shelf) -> Rows:
    """Where the time of a picture goes."""
    peers = (EAGER, COMPILED)
    head = ["model", "size", "engine", "stage", "n", NAMES[OURS]]
    rows = [[*head, *(cell for peer in peers for cell in (NAMES[peer], "times"))]]
    for record in shelf.all("stages", unit="s"):
        if record.contender != OURS:
            continue
        setting = record.setting
        engine = str(setting.get("engine", "ort"))
        if engine == "null" and record.measure != "own":
            continue  # what takes no arithmetic says nothing of the stages
        where = [str(setting["model"]), str(setting["size"]), engine]
        stage = _captured(record) if engine in IDLE else MEASURES.get(record.measure, "all")
        cells = [*where, stage, count(record), amount(record)]
        for peer in peers:
            cells += beside(shelf, record, record.measure, peer)
        rows.append(cells)
    return rows


def startup(shelf: Shelf) -> Rows:
    """A fresh process, and what must be installed for it."""
    rows = [["What", NAMES[OURS], NAMES[EAGER], "times", "n"]]
    for measure, what in (
        ("first-picture", "process start to the picture on the disk"),
        ("first-exit", "process start to its end"),
        ("peak-rss", "peak memory"),
        *IMPORTS,
        ("help", "`--help`, from process start to end"),
        ("installed", "installed size"),
    ):
        ours = shelf.one("startup", measure, CPU_SET if measure == "installed" else None)
        if ours is not None:
            rows.append([what, amount(ours), *beside(shelf, ours, measure), count(ours)])
        python = shelf.one("startup", measure, contender="python")
        if python is not None:
            rows.append(["of that Python itself", *[amount(python)] * 2, "", count(python)])
    for record in _sets(shelf):
        what, version = SETS[record.measure], record.versions.get("torch", "")
        what = f"{what}, for `{record.setting['engine']}` and PyTorch {version} on a GPU"
        rows.append([what, amount(record), *beside(shelf, record, record.measure), count(record)])
    return rows


def step(shelf: Shelf) -> Rows:
    """The UNet alone."""
    head = ["model", "size", "guidance scale", "how", "n", NAMES[OURS], "peak memory"]
    rows = [[*head, NAMES[EAGER], "peak memory", "times"]]
    for record in shelf.all("step", unit="s"):
        if record.contender != OURS:
            continue
        setting = record.setting
        cells = [str(setting[name]) for name in ("model", "size", "guidance_scale")]
        theirs = shelf.one("step", record.measure, setting, contender=EAGER, beside=record)
        cells += [_turns(record), count(record), amount(record), _memory(record)]
        rows.append([*cells, amount(theirs), _memory(theirs), _alone(shelf, record)[1]])
    return rows


def operators(shelf: Shelf) -> Rows:
    """What a step of the UNet consists of, and how near its arithmetic comes to the roof."""
    head = ["model", "size", "images", "n", "a step", *ARITHMETIC, "the rest"]
    rows = [[*head, "GFLOP/s of the first three", "of the roof's speed"]]
    top = gpu_tables.roof(shelf)
    for record in shelf.all("operators", unit="s"):
        if record.measure != STEP or record.spread is None:
            continue
        setting = record.setting
        kinds = [
            shelf.one("operators", kind, setting, beside=record) for kind in (*ARITHMETIC, REST)
        ]
        spent = [kind.spread.p50 if kind and kind.spread else 0.0 for kind in kinds]
        rate = (record.flop or 0) / sum(spent[:-1])
        cells = [str(setting[name]) for name in ("model", "size", "images")]
        cells += [count(record), amount(record)]
        cells += [f"{share / record.spread.p50:.0%}" for share in spent]
        rows.append([*cells, digits(rate / 1e9), f"{rate / top.flops:.0%}" if top else NOTHING])
    return rows


def export(shelf: Shelf) -> Rows:
    """Checkpoint to ONNX."""
    rows = [["checkpoint", "weights", "n", "time", "peak memory", "written"]]
    for record in shelf.all("export", unit="s"):
        setting = record.setting
        weights = f"{float(setting['weights']) / 1e6:,.0f} million"
        others = (
            shelf.one("export", name, setting, beside=record) for name in ("peak-rss", "written")
        )
        cells = [str(setting["model"]), weights, count(record), amount(record)]
        rows.append([*cells, *map(amount, others)])
    return rows


def chip(shelf: Shelf) -> Rows:
    """What a processor can do at most."""
    rows = [["what", "by", "n", "at best", "rate"]]
    for record in shelf.all("chip", unit="s"):
        if record.spread is None:
            continue
        setting, best = record.setting, record.spread.min
        if record.measure == "matmul":
            what = f"{setting['dtype']} product, {setting['m']} x {setting['k']} x {setting['n']}"
            rate = f"{digits((record.flop or 0) / best / 1e9)} GFLOP/s"
        else:
            what = f"copy of {size(float(setting['copied']))}"
            rate = f"{digits((record.nbytes or 0) / best / 1e9)} GB/s, read and written"
        rows.append([what, record.contender, count(record), seconds(best), rate])
    return rows


# Of each table the function that makes its rows, and the benchmarks whose records these tell.
TABLES: dict[str, tuple[Callable[[Shelf], Rows], tuple[str, ...]]] = {
    "summary": (summary, ("end-to-end", "startup", "step", "stages", "export")),
    "end-to-end": (end_to_end, ("end-to-end",)),
    "stages": (stages, ("stages",)),
    "startup": (startup, ("startup",)),
    "step": (step, ("step",)),
    "operators": (operators, ("operators",)),
    "export": (export, ("export",)),
    "chip": (chip, ("chip",)),
    "build": (gpu_tables.build, ("build",)),
    "gpu-steps": (gpu_tables.steps, (gpu_tables.TIME,)),
    "gpu-end-to-end": (gpu_tables.pictures, (gpu_tables.TIME,)),
    "gpu-kernels": (gpu_tables.kernels, (gpu_tables.TIME,)),
    "gpu-attention": (gpu_tables.attention, (gpu_tables.TIME,)),
}


def table(name: str, records: Iterable[Record]) -> str:
    """One of TABLES in Markdown, with the device and versions under it; for each device anew."""
    blocks = []
    for shelf in shelves(records):
        make, benchmarks = TABLES[name]
        head, *rows = make(shelf)
        if rows:
            lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
            # Sets for a GPU are of versions that are not installed here.
            here = [record for record in shelf.records if not record.anywhere]
            told = [record for record in here if record.benchmark in benchmarks] or here
            blocks.append("\n".join(lines) + f"\n\n{_caption(told)}")
    return "\n\n".join(blocks) or "Not measured yet."


def _headline(shelf: Shelf, benchmark: str, measure: str, setting: Setting) -> Record | None:
    """Our newest record of these settings, the threads aside, by the engine that is the default."""
    fitting = [
        record
        for record in shelf.all(benchmark, unit="s")
        if (record.measure, record.contender) == (measure, OURS)
        and "engine" not in record.setting
        and setting.items() <= record.setting.items()
    ]
    return max(reversed(fitting), key=lambda record: record.time, default=None)


def _drawn(shelf: Shelf) -> list[Record]:
    """Our own records of drawing, ordered by model, steps, number of images and size."""
    found = [
        record
        for record in shelf.all("end-to-end", unit="s")
        if record.contender == OURS
        and (record.absent is not None or (record.measure == "picture" and record.spread))
    ]
    return sorted(
        found,
        key=lambda r: (
            str(r.setting["model"]),
            int(r.setting["steps"]),
            int(r.setting["images"]),
            pixels(r),
        ),
    )


def _sets(shelf: Shelf) -> list[Record]:
    """What our sets for a GPU take on the disk, each for one engine."""
    found = (record for record in shelf.all("startup", unit="bytes") if record.contender == OURS)
    sets = [r for r in found if r.measure in SETS and "engine" in r.setting]
    return sorted(sets, key=lambda r: (list(SETS).index(r.measure), str(r.setting["engine"])))


def _turns(record: Record) -> str:
    return TURNS[str(record.setting.get("turns", "alternating"))]


def _alone(shelf: Shelf, ours: Record) -> list[str]:
    """As `beside`; but where nobody took turns, of the ratio the medians' alone."""
    theirs = shelf.one("step", ours.measure, ours.setting, contender=EAGER, beside=ours)
    cells = beside(shelf, ours, ours.measure)
    if ours.setting.get("turns") == "apart" and theirs and theirs.spread and ours.spread:
        cells[1] = digits(theirs.spread.p50 / ours.spread.p50)
    return cells


def _captured(record: Record) -> str:
    """What our own time in a captured step is of, such as `1024x1024, euler, captured, …`."""
    setting = record.setting
    step = f"{setting['size']}, {setting['sampler']}, captured"
    return f"{step}, over a driver that does nothing: {IDLE[str(setting['engine'])]}"


def _memory(record: Record | None) -> str:
    peak = None if record is None else record.peak_rss
    return NOTHING if peak is None else size(peak)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _caption(records: Sequence[Record]) -> str:
    """Device, versions, days and commits of what a table tells."""
    newest = max(records, key=lambda record: record.time)
    found = [f"{name} {newest.versions[name]}" for name in SHOWN if name in newest.versions]
    days = sorted({record.time[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    by_time = sorted(records, key=lambda record: record.time)
    commits = dict.fromkeys(
        record.commit[:7] + (" (changed)" if record.changed else "")
        for record in by_time
        if record.commit is not None
    )
    at = f" at {', '.join(commits)}" if commits else ""
    return "; ".join([str(newest.device), *([", ".join(found)] if found else []), f"{when}{at}."])

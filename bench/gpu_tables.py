"""Tables of what a GPU did: steps, pictures, kernels, attention, beside the chip's own floor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffusion_rt.bench.records import OURS, Record
from diffusion_rt.bench.shelves import Rows, Shelf, amount, digits, seconds, size

TIME = "gpu-time"
TORCH = "torch"
ROOFS = (TIME, "chip")  # benchmarks whose `matmul` and `copy` say what a device can do at most
# What is timed of a model, in the order in which it is told.
MODEL = {
    "step": "one step, captured",
    "picture": "prompt to picture",
    "first-picture": "process start to first picture",
    "load": "model opened, weights on the device",
    "text": "text encoders",
    "decode": "VAE decoder",
}
YARDSTICKS = ("matmul", "copy")
# Of a setting what says neither which kernel it is nor which shape.
BESIDE = ("of", "count", "backend", "tactic", "cache", "dtype")


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device was measured to do at most."""

    flops: float  # operations a second
    bandwidth: float  # bytes a second, read and written counted apart

    def floor(self, record: Record) -> float | None:
        """The seconds below which nothing that does this work can come, caches aside."""
        if not record.flop and not record.nbytes:
            return None
        return max((record.flop or 0) / self.flops, (record.nbytes or 0) / self.bandwidth)


def roof(shelf: Shelf) -> Roof | None:
    """The best product and the best copy that were measured on a device; None without both."""
    fastest = {"matmul": 0.0, "copy": 0.0}
    for record in shelf.records:
        if record.benchmark in ROOFS and record.measure in fastest and record.spread is not None:
            work = record.flop if record.measure == "matmul" else record.nbytes
            rate = (work or 0) / record.spread.min
            fastest[record.measure] = max(fastest[record.measure], rate)
    return Roof(fastest["matmul"], fastest["copy"]) if all(fastest.values()) else None


def steps(shelf: Shelf) -> Rows:
    """One evaluation of the UNet with all around it, by each contender."""
    head = ["model", "size", "guidance", "by", "step", "p90", "TFLOP/s", "of the floor's speed"]
    rows = [[*head, "GPU memory"]]
    for record in _timed(shelf, ("step",)):
        setting = record.setting
        guided = "with" if setting.get("rows") == 2 else "without"
        rows.append(
            [
                *(str(setting.get("model", "")), str(setting.get("size", "")), guided),
                *(_by(record), amount(record), _p90(record), _tflops(record)),
                *(_share(record, roof(shelf)), _memory(record)),
            ]
        )
    return rows


def pictures(shelf: Shelf) -> Rows:
    """Prompt to pixels and the stages of it."""
    rows = [["model", "size", "what", "steps", "by", "time", "p90", "GPU memory"]]
    for record in _timed(shelf, [name for name in MODEL if name != "step"]):
        setting = record.setting
        names = ("model", "size", "steps")
        model, where, count = (str(setting.get(name, "")) for name in names)
        what = [model, where, MODEL[record.measure], count]
        rows.append([*what, _by(record), amount(record), _p90(record), _memory(record)])
    return rows


def kernels(shelf: Shelf) -> Rows:
    """Each kernel at each shape; products and convolutions beside PyTorch's libraries."""
    head = ["kernel", "shape", "cold", "warm", "TB/s", "TFLOP/s", "of the floor's speed", "torch"]
    rows = [head]
    for group in _groups(shelf, lambda record: record.measure != "attention"):
        first = group[0]
        cold, warm = (_best(group, cache) for cache in ("cold", "warm"))
        told = cold or warm or first
        rows.append(
            [
                *(first.measure, _shape(first)),
                *("" if record is None else amount(record) for record in (cold, warm)),
                *(_bandwidth(told), _tflops(told), _share(told, roof(shelf))),
                _torch(shelf, told),
            ]
        )
    return rows


def attention(shelf: Shelf) -> Rows:
    """Attention beside each backend of PyTorch."""
    backends = sorted(
        {
            str(record.setting["backend"])
            for record in shelf.all(TIME, unit="s")
            if record.measure == "attention" and "backend" in record.setting
        }
    )
    rows = [["shape", "diffusion-rt", "TFLOP/s", *(f"torch, {name}" for name in backends)]]
    groups = list(_groups(shelf, lambda record: record.measure == "attention"))
    ours = {_shape(group[0]): _best(group, "cold") or _best(group, "warm") for group in groups}
    theirs: dict[str, dict[str, Record]] = {}
    for record in shelf.all(TIME, unit="s"):
        if record.measure == "attention" and record.contender == TORCH:
            theirs.setdefault(_shape(record), {})[str(record.setting.get("backend"))] = record
    for shape in dict.fromkeys([*ours, *theirs]):
        mine = ours.get(shape)
        others = (theirs.get(shape, {}).get(name) for name in backends)
        told = ["" if mine is None else amount(mine), "" if mine is None else _tflops(mine)]
        rows.append([shape, *told, *("" if one is None else amount(one) for one in others)])
    return rows


def build(shelf: Shelf) -> Rows:
    """Building engines."""
    head = ["model", "engine", "buckets", "from nothing", "once more", "written", "peak memory"]
    rows = [[*head, "GPU memory"]]
    for record in shelf.all("build", unit="s"):
        if record.measure != "build":
            continue
        setting = record.setting
        again, written, memory = (
            shelf.one("build", name, setting, beside=record)
            for name in ("build-again", "written", "peak-rss")
        )
        rows.append(
            [
                *(str(setting.get(name, "its own")) for name in ("model", "engine", "buckets")),
                *(amount(record), amount(again), amount(written), amount(memory)),
                _memory(record),
            ]
        )
    return rows


def _timed(shelf: Shelf, measures: Sequence[str]) -> list[Record]:
    found = [record for record in shelf.all(TIME, unit="s") if record.measure in measures]
    place = {name: number for number, name in enumerate(measures)}
    return sorted(
        found,
        key=lambda r: (str(r.setting.get("model")), str(r.setting.get("size")), place[r.measure]),
    )


def _groups(shelf: Shelf, wanted: Callable[[Record], bool]) -> Iterable[list[Record]]:
    """Our timed kernels, those of one shape together, in the order of the records."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in shelf.all(TIME, unit="s"):
        kernel = record.measure not in MODEL and record.measure not in YARDSTICKS
        if kernel and record.contender == OURS and record.spread is not None and wanted(record):
            groups.setdefault((record.measure, _shape(record)), []).append(record)
    return groups.values()


def _best(group: Iterable[Record], cache: str) -> Record | None:
    """The fastest way to run a kernel on data that is in a cache or is not."""
    fitting = [record for record in group if record.setting.get("cache", "warm") == cache]
    return min(fitting, key=lambda r: r.spread.p50 if r.spread else 0.0, default=None)


def _torch(shelf: Shelf, record: Record) -> str:
    """What PyTorch took for the same shape, at its fastest."""
    same = [
        other
        for other in shelf.all(TIME, unit="s")
        if (other.measure, other.contender) == (record.measure, TORCH)
        and other.spread is not None
        and _shape(other) == _shape(record)
    ]
    best = min(same, key=lambda r: r.spread.p50 if r.spread else 0.0, default=None)
    return "" if best is None else amount(best)


def _shape(record: Record) -> str:
    named: Mapping[str, str | int | float] = record.setting
    return ", ".join(f"{name} {value}" for name, value in named.items() if name not in BESIDE)


def _by(record: Record) -> str:
    engine = record.setting.get("engine")
    return f"{record.contender}, {engine}" if engine is not None else record.contender


def _p90(record: Record) -> str:
    return "" if record.spread is None else seconds(record.spread.p90)


def _tflops(record: Record) -> str:
    if record.spread is None or not record.flop:
        return ""
    return digits(record.flop / record.spread.p50 / 1e12)


def _bandwidth(record: Record) -> str:
    if record.spread is None or not record.nbytes:
        return ""
    return digits(record.nbytes / record.spread.p50 / 1e12)


def _share(record: Record, top: Roof | None) -> str:
    floor = top.floor(record) if top is not None else None
    if floor is None or record.spread is None:
        return ""
    return f"{floor / record.spread.p50:.0%}"


def _memory(record: Record) -> str:
    return "" if record.peak_device is None else size(record.peak_device)

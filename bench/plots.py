"""Which plots there are of records: lines over sizes or images, buckets, and rooflines."""

from collections.abc import Iterable, Sequence

from diffusion_rt.bench.drawing import ROOF, Plot, Point
from diffusion_rt.bench.gpu_tables import roof
from diffusion_rt.bench.records import Record
from diffusion_rt.bench.shelves import Shelf, pixels, shelves
from diffusion_rt.bench.tables import NAMES

FEWEST = 3  # places that make a line
MOST_POINTS = 12  # of a roofline, those of the most work
SAME_AREA = 1.1  # pictures of one bucket list differ in area by less than this

WORDS = {"evaluation": "UNet", "step": "step"}  # measures as they are called beside a point
Lines = dict[str, list[Point]]


def plots(records: Iterable[Record]) -> dict[str, Plot]:
    """Every plot that the records suffice for, by the name of its file."""
    found = {}
    for number, shelf in enumerate(shelves(records)):
        suffix = "" if number == 0 else f"-{number + 1}"
        for name, plot in (
            ("growth-size", _growth(shelf, "size", "size of the picture, logarithmic in its area")),
            ("growth-images", _growth(shelf, "images", "images drawn together, logarithmic")),
            ("buckets", _buckets(shelf)),
            ("roofline", _roofline(shelf)),
        ):
            if plot is not None:
                found[f"{name}{suffix}.png"] = plot
    return found


def _growth(shelf: Shelf, label: str, axis: str) -> Plot | None:
    """The longest series of one run in which only `label` (size or images) changes."""
    best: list[Record] = []
    for group in _series(shelf, label):
        if len(_values(group, label)) >= len(_values(best, label)):
            best = group

    def point(record: Record, seconds: float) -> Point:
        place = pixels(record) if label == "size" else int(record.setting["images"])
        return float(place), seconds, str(record.setting[label])

    return _plot("prompt to picture", axis, [(r, point(r, _median(r))) for r in best])


def _buckets(shelf: Shelf) -> Plot | None:
    """Sizes of about one area that one run drew at one setting, side by side."""
    best: list[Record] = []
    for group in _series(shelf, "size"):
        for middle in group:
            low, high = pixels(middle) / SAME_AREA, pixels(middle) * SAME_AREA
            near = [record for record in group if low <= pixels(record) <= high]
            if len(_values(near, "size")) > len(_values(best, "size")):
                best = near
    sizes = sorted(_values(best, "size"), key=_aspect)

    def point(record: Record, seconds: float) -> Point:
        size = str(record.setting["size"])
        # Powers of two stand at equal distances on a logarithmic axis.
        return float(2 ** sizes.index(size)), seconds, size

    pairs = [(record, point(record, _median(record))) for record in best]
    return _plot("prompt to picture by bucket", "size, from tall to wide", pairs)


def _roofline(shelf: Shelf) -> Plot | None:
    """What a device did at most, and how near to it the UNet and the kernels come."""
    top = roof(shelf)
    done = [
        record
        for record in shelf.records
        if record.flop and record.nbytes and record.spread is not None and record.unit == "s"
        # What computes nothing has no rate; a profile's own table says more than its points.
        if record.setting.get("engine") != "null" and record.benchmark != "operators"
    ]
    if top is None or not done:
        return None
    done = sorted(done, key=lambda record: -(record.flop or 0))[:MOST_POINTS]
    points: Lines = {}
    for record in done:
        assert record.flop
        assert record.nbytes
        model = record.setting.get("model")
        what = "" if model is None else f"{model} {record.setting.get('size', '')} "
        label = f"{what}{WORDS.get(record.measure, record.measure)}"
        point = (record.flop / record.nbytes, record.flop / _median(record), label)
        points.setdefault(_who(record), []).append(point)
    knee = top.flops / top.bandwidth
    places = [place for group in points.values() for place, _, _ in group]
    ends = min(*places, knee) / 4, max(*places, knee) * 4
    line = [(x, min(top.flops, x * top.bandwidth), "") for x in (ends[0], knee, ends[1])]
    return Plot(
        title=f"roofline, {done[0].device}",
        note="the roof: the best product and the best copy that were measured",
        axis="FLOP for each byte, logarithmic",
        lines={ROOF: line},
        unit="FLOP/s",
        points=points,
        marks=True,
    )


def _series(shelf: Shelf, label: str) -> Iterable[list[Record]]:
    """Pictures of one run that differ in `label` alone, the oldest run first."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in shelf.history:
        timed = record.spread is not None and record.unit == "s"
        if timed and (record.benchmark, record.measure) == ("end-to-end", "picture"):
            rest = tuple(sorted((k, v) for k, v in record.setting.items() if k != label))
            groups.setdefault((record.together, rest), []).append(record)
    return groups.values()


def _plot(what: str, axis: str, points: Sequence[tuple[Record, Point]]) -> Plot | None:
    """Lines of all who have enough points; None where nobody does."""
    lines: Lines = {}
    for record, point in points:
        lines.setdefault(_who(record), []).append(point)
    lines = {name: sorted(line) for name, line in lines.items() if len(line) >= FEWEST}
    if not lines:
        return None
    first = points[0][0]
    fewest = min(record.spread.n for record, _ in points if record.spread is not None)
    note = f"medians of {fewest} runs each, {first.time[:10]}"
    note += f" at {first.commit[:7]}" if first.commit else ""
    title = f"{first.setting['model']}: {what}, {first.device}"
    return Plot(title=title, note=note, axis=axis, lines=lines)


def _values(records: Iterable[Record], label: str) -> set[str]:
    return {str(record.setting[label]) for record in records}


def _median(record: Record) -> float:
    assert record.spread is not None
    return record.spread.p50


def _who(record: Record) -> str:
    return NAMES.get(record.contender, record.contender)


def _aspect(size: str) -> float:
    width, height = map(int, size.split("x"))
    return width / height

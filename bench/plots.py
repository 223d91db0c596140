"""Plots of records as PNG files, drawn with Pillow: lines over sizes or images, and rooflines."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffusion_rt.bench.gpu_tables import roof
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import OURS, Record
from diffusion_rt.bench.shelves import Shelf, digits, pixels, seconds, shelves
from diffusion_rt.bench.tables import NAMES
from diffusion_rt.engines.artefact import writing

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 74, 150, 52, 64  # margins around the lines
FINE = 3  # drawn so many times as large, then made smaller: smooth lines
INK, FAINT, PAPER = "#222222", "#dddddd", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by all eyes
ROOF = "the floor"  # of time: what was measured of a product and of a copy
MOST_POINTS = 12  # of a roofline, those of the most work
SAME_AREA = 1.1  # pictures of one bucket list differ in area by less than this
KEY = "diffusion_rt"  # the PNG text that says which values a plot was drawn from

WORDS = {"evaluation": "UNet", "step": "step"}  # measures as they are called beside a point
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Point = tuple[float, float, str]  # place along the axis, seconds, label of the place


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis, both logarithmic; seconds upward, or FLOP/s.

    `points` are named by themselves and stand on no line. Where the axis has `marks`, they are
    numbers at round places; else each point has its label under it.
    """

    title: str
    axis: str
    lines: Mapping[str, Sequence[Point]]
    unit: Literal["s", "FLOP/s"] = "s"
    points: Sequence[Point] = ()
    marks: bool = False

    @property
    def sha256(self) -> str:
        """Of all that is drawn."""
        told: list[object] = [self.title, self.axis, list(self.lines.items())]
        if self.marks:
            told += [self.unit, list(self.points)]
        content = json.dumps(told)
        return hashlib.sha256(content.encode()).hexdigest()


def plots(records: Iterable[Record]) -> dict[str, Plot]:
    """Every plot that the records suffice for, by the name of its file."""
    found = {}
    for number, (device, shelf) in enumerate(shelves(records).items()):
        drawn = [
            record
            for record in shelf.all("end-to-end", unit="s")
            if record.measure == "picture" and record.spread is not None
        ]
        suffix = "" if number == 0 else f"-{number + 1}"
        for name, axis, fixed, label in (
            ("growth-size", "size of the picture", "images", "size"),
            ("growth-images", "images drawn together", "size", "images"),
        ):
            lines = _lines(drawn, fixed, label)
            if lines:
                model = drawn[0].setting["model"]
                title = f"{model}: prompt to picture, {device}"
                found[f"{name}{suffix}.png"] = Plot(title, axis, lines)
        for name, plot in (("buckets", _buckets(drawn, device)), ("roofline", _roofline(shelf))):
            if plot is not None:
                found[f"{name}{suffix}.png"] = plot
    return found


def _buckets(records: Sequence[Record], device: Device) -> Plot | None:
    """Sizes of about one area, side by side, where there are three of them at one setting."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        rest = {k: v for k, v in record.setting.items() if k != "size"}
        groups.setdefault(tuple(sorted(rest.items())), []).append(record)
    best: list[Record] = []
    for group in groups.values():
        for middle in group:
            low, high = pixels(middle) / SAME_AREA, pixels(middle) * SAME_AREA
            near = [record for record in group if low <= pixels(record) <= high]
            if len({r.setting["size"] for r in near}) > len({r.setting["size"] for r in best}):
                best = near
    sizes = sorted({str(record.setting["size"]) for record in best}, key=_aspect)
    if len(sizes) < 3:
        return None
    lines: dict[str, list[Point]] = {}
    for record in best:
        assert record.spread is not None
        size = str(record.setting["size"])
        # Powers of two stand at equal distances on a logarithmic axis.
        point = (float(2 ** sizes.index(size)), record.spread.p50, size)
        lines.setdefault(NAMES.get(record.contender, record.contender), []).append(point)
    title = f"{best[0].setting['model']}: prompt to picture by bucket, {device}"
    return Plot(title, "size", {name: sorted(points) for name, points in lines.items()})


def _aspect(size: str) -> float:
    width, height = map(int, size.split("x"))
    return width / height


def _roofline(shelf: Shelf) -> Plot | None:
    """What a device can do at most, and how near to it our steps and kernels come."""
    top = roof(shelf)
    done = [
        record
        for record in shelf.records
        if record.flop and record.nbytes and record.spread is not None and record.unit == "s"
    ]
    if top is None or not done:
        return None
    done = sorted(done, key=lambda record: -(record.flop or 0))[:MOST_POINTS]
    points: list[Point] = []
    for record in done:
        assert record.spread is not None
        assert record.flop
        assert record.nbytes
        who = NAMES.get(record.contender, record.contender)
        by = "" if record.contender == OURS else f", {who}"
        model = record.setting.get("model")
        what = "" if model is None else f"{model} {record.setting.get('size', '')} "
        name = f"{what}{WORDS.get(record.measure, record.measure)}{by}"
        points.append((record.flop / record.nbytes, record.flop / record.spread.p50, name))
    knee = top.flops / top.bandwidth
    places = [place for place, _, _ in points]
    ends = min(*places, knee) / 4, max(*places, knee) * 4
    line = [(x, min(top.flops, x * top.bandwidth), "") for x in (ends[0], knee, ends[1])]
    device = done[0].device
    title = f"roofline, {device}"
    return Plot(title, "FLOP for each byte", {ROOF: line}, "FLOP/s", points, marks=True)


def _lines(records: Sequence[Record], fixed: str, label: str) -> dict[str, list[Point]]:
    """The longest series in which only `label` (size or images) changes, for each contender."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        rest = {k: v for k, v in record.setting.items() if k != label}
        groups.setdefault(tuple(sorted(rest.items())), []).append(record)
    if not groups:
        return {}
    chosen = max(groups.values(), key=lambda group: len({r.setting[label] for r in group}))
    if len({record.setting[label] for record in chosen}) < 3:
        return {}
    lines: dict[str, list[Point]] = {}
    for record in chosen:
        assert record.spread is not None
        place = pixels(record) if label == "size" else int(record.setting["images"])
        point = (float(place), record.spread.p50, str(record.setting[label]))
        lines.setdefault(NAMES.get(record.contender, record.contender), []).append(point)
    return {name: sorted(points) for name, points in lines.items()}


def draw(plot: Plot) -> Image.Image:
    """The plot as an RGB picture."""
    canvas = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    pen = ImageDraw.Draw(canvas)
    small, large = (ImageFont.load_default(size * FINE) for size in (13, 15))
    drawn = [point for line in plot.lines.values() for point in line] + list(plot.points)
    places = {place: label for place, _, label in drawn}
    values = [value for _, value, _ in drawn]
    ticks = round_values(min(values), max(values))
    if plot.marks:
        places = {mark: digits(mark) for mark in round_values(min(places), max(places))}
    across = _Scale(min(places), max(places), LEFT, WIDTH - RIGHT)
    upward = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)

    def text(x: float, y: float, words: str, anchor: str, font: Font) -> None:
        pen.text((x * FINE, y * FINE), words, INK, font, anchor)

    text(LEFT, 20, plot.title, "lm", large)
    if plot.unit != "s":
        text(LEFT - 8, TOP - 16, plot.unit, "rm", small)
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, plot.axis, "mm", small)
    for value in ticks:
        y = upward(value)
        pen.line([LEFT * FINE, y * FINE, (WIDTH - RIGHT) * FINE, y * FINE], FAINT, FINE)
        text(LEFT - 8, y, seconds(value) if plot.unit == "s" else flops(value), "rm", small)
    for place, label in places.items():
        x = across(place)
        pen.line([x * FINE, TOP * FINE, x * FINE, (HEIGHT - BOTTOM) * FINE], FAINT, FINE)
        text(x, HEIGHT - BOTTOM + 14, label, "mm", small)
    ends = []
    for colour, (name, line) in zip(COLOURS, plot.lines.items(), strict=False):
        points = [(across(place) * FINE, upward(value) * FINE) for place, value, _ in line]
        pen.line(points, colour, 2 * FINE, joint="curve")
        for x, y in points if not plot.marks else []:
            pen.circle((x, y), 4 * FINE, colour)
        ends.append((points[-1][1] / FINE, name, colour))
    labels = []
    for place, value, name in plot.points:
        x, y = across(place), upward(value)
        colour = COLOURS[1 + (", " in name)]
        pen.circle((x * FINE, y * FINE), 4 * FINE, colour)
        labels.append((y, name, colour))
    for (y, name, _), (place, _, _) in zip(
        apart(labels, 15), sorted(plot.points, key=lambda p: -p[1]), strict=True
    ):
        text(across(place) - 9, y, name, "rm", small)
    for y, name, colour in apart(ends, 18):
        pen.text(((WIDTH - RIGHT + 14) * FINE, y * FINE), name, colour, small, "lm")
    return canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def flops(value: float) -> str:
    """Such as 20 G, of FLOP/s."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.0f} {unit}"
    return f"{value:.0f}"


def round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last at most `low` to the first at least `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low)
    last = min(i for i, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]


def apart(
    labels: Sequence[tuple[float, str, str]], distance: float
) -> list[tuple[float, str, str]]:
    """Labels (height, name, colour) from the top down, none nearer to the next than `distance`."""
    found: list[tuple[float, str, str]] = []
    for y, name, colour in sorted(labels):
        found.append((max(y, found[-1][0] + distance) if found else y, name, colour))
    return found


def save(plot: Plot, path: Path) -> None:
    """Write a plot as a PNG file that says what it was drawn from."""
    text = PngInfo()
    text.add_text(KEY, plot.sha256)
    with writing(path) as file:
        draw(plot).save(file, "PNG", pnginfo=text, optimize=True)


def drawn_from(path: Path) -> str | None:
    """What `save` noted in a PNG file; None where there is no such file or note."""
    try:
        with Image.open(path) as image:
            noted = image.info.get(KEY)
    except (OSError, UnidentifiedImageError):
        return None
    return noted if isinstance(noted, str) else None


class _Scale:
    """Logarithmic, from values to places on the paper."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = math.log(low), start
        self._slope = (end - start) / max(math.log(high) - self._low, 1e-9)

    def __call__(self, value: float) -> float:
        return self._start + (math.log(value) - self._low) * self._slope

"""A plot as a PNG file, drawn with Pillow: lines and points over two logarithmic axes."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffusion_rt.bench.shelves import digits, seconds
from diffusion_rt.engines.artefact import writing

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 74, 150, 84, 64  # margins around the lines
FINE = 3  # drawn so many times as large, then made smaller: smooth lines
INK, GREY, FAINT, PAPER = "#222222", "#666666", "#dddddd", "#ffffff"
# Okabe and Ito's, told apart by all eyes. The first three are whose they are in every plot.
COLOURS = {"diffusion-rt": "#0072b2", "diffusers": "#d55e00", "torch.compile": "#009e73"}
OTHERS = ("#cc79a7", "#e69f00", "#56b4e9")
ROOF = "the roof"
KEY = "diffusion_rt"  # the PNG text that says which values a plot was drawn from, and by what

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Point = tuple[float, float, str]  # place along the axis, seconds or FLOP/s, label of the place
Series = Mapping[str, Sequence[Point]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Lines over one axis, both logarithmic; seconds upward, or FLOP/s.

    Lines and points are named by who did it. `points` stand on no line, and the labels of those at
    one place are under the lowest. Where the axis has `marks`, it has numbers at round places; else
    the label of each point is under it.
    """

    title: str
    note: str  # when and how often it was measured
    axis: str
    lines: Series
    unit: Literal["s", "FLOP/s"] = "s"
    points: Series = field(default_factory=dict)
    marks: bool = False

    @property
    def sha256(self) -> str:
        """Of all that is drawn and of how it is drawn."""
        told = json.dumps([*astuple(self)])
        return hashlib.sha256(told.encode() + Path(__file__).read_bytes()).hexdigest()

    @property
    def colours(self) -> dict[str, str]:
        """Of each name."""
        found = COLOURS | {ROOF: GREY}
        rest = iter(OTHERS * 9)
        names = dict.fromkeys([*self.lines, *self.points])
        return {name: found[name] if name in found else next(rest) for name in names}


def draw(plot: Plot) -> Image.Image:
    """The plot as an RGB picture."""
    canvas = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    pen = ImageDraw.Draw(canvas)
    small, large = (ImageFont.load_default(size * FINE) for size in (13, 15))
    series = [*plot.lines.values(), *plot.points.values()]
    drawn = [point for points in series for point in points]
    places = {place: label for place, _, label in drawn}
    values = [value for _, value, _ in drawn]
    ticks = round_values(min(values), max(values))
    if plot.marks:
        places = {mark: digits(mark) for mark in round_values(min(places), max(places))}
    across = _Scale(min(places), max(places), LEFT, WIDTH - RIGHT)
    upward = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    colours = plot.colours

    def text(x: float, y: float, words: str, anchor: str, font: Font, colour: str = INK) -> None:
        pen.text((x * FINE, y * FINE), words, colour, font, anchor)

    def line(ends: Sequence[tuple[float, float]], colour: str, width: int = 1) -> None:
        pen.line([(x * FINE, y * FINE) for x, y in ends], colour, width * FINE, joint="curve")

    def dot(x: float, y: float, colour: str) -> None:
        pen.circle((x * FINE, y * FINE), 4 * FINE, colour)

    text(LEFT, 20, plot.title, "lm", large)
    text(LEFT, 40, plot.note, "lm", small, GREY)
    upward_is = "time" if plot.unit == "s" else plot.unit
    text(LEFT - 66, TOP - 20, f"{upward_is}, logarithmic", "lm", small)
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, plot.axis, "mm", small)
    for value in ticks:
        y = upward(value)
        line([(LEFT, y), (WIDTH - RIGHT, y)], FAINT)
        text(LEFT - 8, y, seconds(value) if plot.unit == "s" else flops(value), "rm", small)
    for place, label in places.items():
        x = across(place)
        line([(x, TOP), (x, HEIGHT - BOTTOM)], FAINT)
        text(x, HEIGHT - BOTTOM + 14, label, "mm", small)
    names = []
    for name, points in plot.lines.items():
        ends = [(across(place), upward(value)) for place, value, _ in points]
        line(ends, colours[name], 2)
        for x, y in ends if not plot.marks else []:
            dot(x, y, colours[name])
        names.append((ends[-1][1], name))
    lowest: dict[str, tuple[float, float]] = {}
    for name, points in plot.points.items():
        for place, value, label in points:
            x, y = across(place), upward(value)
            dot(x, y, colours[name])
            lowest[label] = (x, max(y, lowest.get(label, (x, y))[1]))
        names.append((upward(points[0][1]), name))
    for label, (x, y) in lowest.items():
        text(x, y + 8, label, "mt", small)
    for y, name in apart(names, 18):
        text(WIDTH - RIGHT + 14, y, name, "lm", small, colours[name])
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


def apart(labels: Sequence[tuple[float, str]], distance: float) -> list[tuple[float, str]]:
    """Labels (height, name) from the top down, none nearer to the next than `distance`."""
    found: list[tuple[float, str]] = []
    for y, name in sorted(labels):
        found.append((max(y, found[-1][0] + distance) if found else y, name))
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

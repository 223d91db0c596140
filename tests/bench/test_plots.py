"""Plots: there when records suffice, drawn where the values say, known by what they show."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from diffusion_rt.bench.plots import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Plot,
    apart,
    draw,
    drawn_from,
    plots,
    round_values,
    save,
)
from diffusion_rt.bench.records import Record
from diffusion_rt.bench.spread import spread
from support.races import drawn, origin


def growing() -> list[Record]:
    """Three sizes and two numbers of images, by two contenders."""
    records = []
    for factor, contender in ((1.0, "diffusion-rt"), (3.0, "diffusers")):
        for side in (16, 32, 64):
            size = f"{side}x{side}"
            records.append(drawn(factor * side**2 / 1e3, contender, size=size))
        records.append(drawn(factor, contender, images=2))
    return records


def test_three_places_make_a_line() -> None:
    found = plots(growing())
    assert list(found) == ["growth-size.png"], "two numbers of images are no line"
    lines = found["growth-size.png"].lines
    assert list(lines) == ["diffusion-rt", "diffusers"]
    assert [(place, label) for place, _, label in lines["diffusers"]] == [
        (256.0, "16x16"),
        (1024.0, "32x32"),
        (4096.0, "64x64"),
    ]
    with_more = plots([*growing(), drawn(9, images=4)])
    assert set(with_more) == {"growth-size.png", "growth-images.png"}
    assert plots([]) == {}


def test_values_lie_where_the_axes_say() -> None:
    # From 1 ms to 1 s over a factor of 16 in size: both corners of the paper between the margins.
    line = [(256.0, 1e-3, "16x16"), (4096.0, 1.0, "64x64")]
    picture = np.asarray(draw(Plot("", "size", {"diffusion-rt": line}))).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    inked = np.abs(picture - ImageColor.getrgb(COLOURS[0])).sum(2) < 30
    inked[:, WIDTH - RIGHT + 10 :] = False  # the name of the line
    rows, columns = np.nonzero(inked)
    assert abs(columns.min() - LEFT) <= 5
    assert abs(columns.max() - (WIDTH - RIGHT)) <= 5
    assert abs(rows.min() - TOP) <= 5
    assert abs(rows.max() - (HEIGHT - BOTTOM)) <= 5
    middle = columns[np.abs(rows - (TOP + HEIGHT - BOTTOM) / 2) < 2].mean()
    assert abs(middle - (LEFT + WIDTH - RIGHT) / 2) < 4, "logarithmic both ways: a straight line"


def timed(benchmark: str, measure: str, seconds: float, **work: Any) -> Record:
    contender = work.pop("contender", "diffusion-rt")
    setting = work.pop("setting", {})
    values = spread([seconds])
    return origin(benchmark).record(measure, contender, setting, spread=values, **work)


def test_a_roofline_has_what_was_measured_of_the_device_and_of_the_work() -> None:
    step = {"model": "full", "size": "512x512"}
    point = timed("step", "evaluation", 2.0, flop=100 * 10**9, nbytes=10**9, setting=step)
    theirs = replace(point, contender="diffusers", spread=spread([4.0]))
    copy = timed("chip", "copy", 0.5, nbytes=5 * 10**9, contender="numpy")
    slow, fast = (
        timed("chip", "matmul", seconds, flop=2 * 10**11, contender=name)
        for seconds, name in ((4.0, "torch"), (2.0, "numpy"))
    )
    assert plots([point, copy]) == {}, "no roof without a product"
    assert plots([copy, slow, fast]) == {}, "no roofline without work under it"
    found = plots([point, theirs, copy, slow, fast])["roofline.png"]
    assert [(x, y) for x, y, _ in found.points] == [(100.0, 5e10), (100.0, 2.5e10)]
    assert [name for _, _, name in found.points] == [
        "full 512x512 UNet",
        "full 512x512 UNet, diffusers",
    ]
    (line,) = found.lines.values()
    # The better product is the roof, 1e11 FLOP/s; it meets 1e10 bytes/s at 10 FLOP for a byte.
    assert [(x, y) for x, y, _ in line] == [(2.5, 2.5e10), (10.0, 1e11), (400.0, 1e11)]
    picture = np.asarray(draw(found)).astype(int)
    for colour in COLOURS[:3]:
        assert (np.abs(picture - ImageColor.getrgb(colour)).sum(2) < 30).any()


def test_sizes_of_one_area_stand_side_by_side() -> None:
    sizes = ("96x32", "32x96", "64x48", "48x64", "64x64")
    records = [drawn(i + 1, size=size) for i, size in enumerate(sizes)]
    found = plots([*records, *(drawn(9, size=f"{n}x{n}") for n in (16, 32))])
    assert set(found) == {"growth-size.png", "buckets.png"}
    (line,) = found["buckets.png"].lines.values()
    assert [(place, label) for place, _, label in line] == [
        (1, "32x96"),
        (2, "48x64"),
        (4, "64x48"),
        (8, "96x32"),
    ]


def test_a_file_knows_what_it_was_drawn_from(tmp_path: Path) -> None:
    (plot,) = plots(growing()).values()
    path = tmp_path / "a.png"
    assert drawn_from(path) is None
    save(plot, path)
    assert drawn_from(path) == plot.sha256
    assert Image.open(path).size == (WIDTH, HEIGHT)
    (other,) = plots([*growing(), drawn(0.3, size="64x64")]).values()
    assert other.sha256 != plot.sha256
    path.write_bytes(b"no picture")
    assert drawn_from(path) is None


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6))
def test_ticks_hold_all_values(low: float, factor: float) -> None:
    ticks = round_values(low, low * factor)
    assert ticks[0] <= low
    assert ticks[-1] >= low * factor
    assert len(ticks) >= 2
    for tick in ticks:
        mantissa = tick / 10 ** math.floor(math.log10(tick) + 1e-9)
        assert min(abs(mantissa - whole) for whole in (1, 2, 5)) < 1e-9
    assert all(1.9 < b / a < 2.6 for a, b in itertools.pairwise(ticks))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_labels_keep_their_distance(heights: list[float]) -> None:
    found = [y for y, _, _ in apart([(y, "", "") for y in heights], 18)]
    assert len(found) == len(heights)
    assert all(below - above >= 18 - 1e-9 for above, below in itertools.pairwise(found))

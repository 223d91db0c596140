"""A plot as a picture: drawn where the values say, in the colours of who it is."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from diffusion_rt.bench import drawing
from diffusion_rt.bench.drawing import (
    BOTTOM,
    COLOURS,
    GREY,
    HEIGHT,
    LEFT,
    RIGHT,
    ROOF,
    TOP,
    WIDTH,
    Plot,
    apart,
    draw,
    drawn_from,
    round_values,
    save,
)

OURS, THEIRS = "diffusion-rt", "diffusers"
# From 1 ms to 1 s over a factor of 16 in size: both corners of the paper between the margins.
LINE = [(256.0, 1e-3, "16x16"), (4096.0, 1.0, "64x64")]
PLOT = Plot(title="", note="", axis="size", lines={OURS: LINE})


def inked(plot: Plot, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is drawn in a colour, names beside the paper aside."""
    picture = np.asarray(draw(plot)).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    found = np.abs(picture - ImageColor.getrgb(colour)).sum(2) < 30
    found[:, WIDTH - RIGHT + 10 :] = False
    rows, columns = np.nonzero(found)
    return rows, columns


def test_values_lie_where_the_axes_say() -> None:
    rows, columns = inked(PLOT, COLOURS[OURS])
    assert abs(columns.min() - LEFT) <= 5
    assert abs(columns.max() - (WIDTH - RIGHT)) <= 5
    assert abs(rows.min() - TOP) <= 5
    assert abs(rows.max() - (HEIGHT - BOTTOM)) <= 5
    middle = columns[np.abs(rows - (TOP + HEIGHT - BOTTOM) / 2) < 2].mean()
    assert abs(middle - (LEFT + WIDTH - RIGHT) / 2) < 4, "logarithmic both ways: a straight line"


def test_everybody_has_one_colour_in_every_plot() -> None:
    roof = Plot(
        title="",
        note="",
        axis="",
        unit="FLOP/s",
        lines={ROOF: [(1.0, 1e9, ""), (100.0, 1e11, "")]},
        points={THEIRS: [(10.0, 5e9, "UNet")], OURS: [(10.0, 9e9, "UNet")]},
        marks=True,
    )
    for name, colour in ((OURS, COLOURS[OURS]), (THEIRS, COLOURS[THEIRS]), (ROOF, GREY)):
        assert roof.colours[name] == colour
        assert inked(roof, colour)[0].size
    assert PLOT.colours[OURS] == roof.colours[OURS]
    more = replace(PLOT, lines=dict.fromkeys(("ort", "trt", OURS), LINE))
    assert len(set(more.colours.values())) == 3


def test_a_file_knows_what_it_was_drawn_from_and_by_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    assert drawn_from(path) is None
    save(PLOT, path)
    assert drawn_from(path) == PLOT.sha256
    assert Image.open(path).size == (WIDTH, HEIGHT)
    for change in (
        replace(PLOT, title="another"),
        replace(PLOT, lines={OURS: [(256.0, 2e-3, "16x16"), LINE[1]]}),
        replace(PLOT, points={OURS: LINE}),
        replace(PLOT, marks=True),
    ):
        assert change.sha256 != PLOT.sha256
    source = tmp_path / "drawing.py"
    source.write_bytes(Path(drawing.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(drawing, "__file__", str(source))
    assert drawn_from(path) != PLOT.sha256, "drawn otherwise than it would be now"
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
    found = [y for y, _ in apart([(y, "") for y in heights], 18)]
    assert len(found) == len(heights)
    assert all(below - above >= 18 - 1e-9 for above, below in itertools.pairwise(found))

"""The renderer: areas, places, edges, crops and soft pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.bench.shapes.captions import SHAPES, Scene, Thing, sample_scene
from diffusion_rt.bench.shapes.draw import (
    BACKDROP,
    PALETTE,
    View,
    coverage,
    draw,
    extent,
    fits,
    plain_view,
    unit_area,
)
from diffusion_rt.bench.shapes.pool import BUCKETS, KINDS


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SHAPES), st.floats(8, 28), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_shape_covers_its_area_around_its_centroid(
    shape: str, radius: float, dx: float, dy: float
) -> None:
    rows, columns = np.mgrid[:80, :80] + 0.5
    alpha = coverage(shape, radius, columns - 40 - dx, rows - 40 - dy)
    area = alpha.sum()
    assert area == pytest.approx(unit_area(shape) * radius**2, rel=0.03)
    assert (alpha * columns).sum() / area == pytest.approx(40 + dx, abs=0.2)
    assert (alpha * rows).sum() / area == pytest.approx(40 + dy, abs=0.2)
    far = np.hypot(columns - 40 - dx, rows - 40 - dy) > extent(shape) * radius + 1
    assert not alpha[far].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from(BUCKETS))
def test_colours_are_the_palettes_and_no_thing_meets_another(
    seed: int, kind: str, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, kind)  # type: ignore[arg-type]
    if not fits(scene, size):
        return
    picture = draw(scene, plain_view(size), rng)
    assert picture.shape == (*size, 3)
    ground = np.asarray(BACKDROP[scene.background])
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == ground).all()
    pure = {tuple(PALETTE[t.colour]) for t in scene.things} | {tuple(ground)}
    flat = {tuple(int(v) for v in pixel) for pixel in picture.reshape(-1, 3)}
    assert pure <= flat


SCENE = Scene("white", (Thing("blue", "square", "large", 4),))


def test_a_crop_is_a_part_of_the_canvas() -> None:
    canvas = draw(SCENE, plain_view((144, 160)))
    crop = View((128, 128), (144, 160), crop=(8, 24))
    assert np.array_equal(draw(SCENE, crop), canvas[8:136, 24:152])
    assert crop.time_ids == (144, 160, 8, 24, 128, 128)


@pytest.mark.parametrize("shrink", [2, 4])
def test_an_enlarged_small_picture_is_softer_and_says_so(shrink: int) -> None:
    view = View((128, 128), (128, 128), shrink=shrink)
    soft, sharp = draw(SCENE, view).astype(float), draw(SCENE, plain_view((128, 128))).astype(float)
    assert view.time_ids == (128 // shrink, 128 // shrink, 0, 0, 128, 128)
    assert np.abs(np.diff(soft, axis=1)).max() < 0.8 * np.abs(np.diff(sharp, axis=1)).max()
    assert soft.mean() == pytest.approx(sharp.mean(), abs=0.5)

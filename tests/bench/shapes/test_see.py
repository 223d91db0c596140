"""The judge: right on true pictures, and not to be fooled by wrong ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.bench.shapes.captions import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Scene,
    Thing,
    sample_scene,
)
from diffusion_rt.bench.shapes.draw import RADIUS, draw, fits, paint, plain_view
from diffusion_rt.bench.shapes.pool import BUCKETS, KINDS
from diffusion_rt.bench.shapes.see import blobs, judge, see

SQUARE = (128, 128)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(KINDS), st.sampled_from(BUCKETS))
def test_a_true_picture_is_all_right(seed: int, kind: Kind, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, kind)
    if fits(scene, size):
        verdict = judge(scene, see(draw(scene, plain_view(size), rng)))
        assert all(verdict.values()), verdict


def _other(value: str, values: tuple[str, ...], seed: int) -> str:
    return values[(values.index(value) + 1 + seed % (len(values) - 1)) % len(values)]


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(["colour", "shape", "size", "background", "place", "count"]))
def test_one_planted_error_is_found_and_named(seed: int, part: str) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "single")
    thing = scene.things[0]
    lie = scene
    if part == "background":
        lie = replace(scene, background=_other(scene.background, BACKGROUNDS, seed))
    elif part == "place":
        lie = replace(scene, things=(replace(thing, cell=(thing.cell + 1 + seed % 8) % 9),))
    elif part == "count":
        lie = replace(scene, things=(thing, replace(thing, cell=(thing.cell + 3) % 9)))
    else:
        values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[part]
        changed = {part: _other(getattr(thing, part), values, seed)}
        lie = replace(scene, things=(replace(thing, **changed),))  # type: ignore[arg-type]
    verdict = judge(lie, see(draw(scene, plain_view(SQUARE), rng)))
    assert not verdict[part]
    assert not verdict["all"]
    if part in ("colour", "background"):
        assert [p for p, right in verdict.items() if not right] == [part, "all"]


@pytest.mark.parametrize("relation", RELATIONS)
def test_swapped_things_are_found(relation: str) -> None:
    first, second = RELATIONS[relation]
    one, two = Thing("red", "circle", "small", first), Thing("blue", "star", "large", second)
    asked = Scene("white", (one, two), "relation", relation)
    swapped = Scene("white", (replace(one, cell=second), replace(two, cell=first)), "relation")
    assert judge(asked, see(draw(asked, plain_view(SQUARE))))["all"]
    verdict = judge(asked, see(draw(swapped, plain_view(SQUARE))))
    assert not verdict["colour"]
    assert not verdict["shape"]
    assert not verdict["all"]


def test_attributes_of_two_things_exchanged_are_found() -> None:
    one, two = Thing("red", "circle", "medium", 3), Thing("blue", "star", "medium", 5)
    asked = Scene("white", (one, two), "relation", "left of")
    mixed = replace(asked, things=(replace(one, colour="blue"), replace(two, colour="red")))
    verdict = judge(asked, see(draw(mixed, plain_view(SQUARE))))
    assert not verdict["colour"]
    assert verdict["shape"]
    assert not verdict["all"]


def test_a_blot_and_an_empty_picture_are_found() -> None:
    scene = Scene("white", (Thing("red", "circle", "medium", 4),))
    picture = draw(scene, plain_view(SQUARE))
    picture[5:12, 5:12] = 0
    assert not judge(scene, see(picture))["count"]
    assert not judge(scene, see(np.full((128, 128, 3), 250, dtype=np.uint8)))["count"]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert not judge(scene, see(noise))["all"]


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from(SHAPES), st.sampled_from(SIZES))
def test_shapes_are_known_though_blurred_and_noisy(seed: int, shape: str, size: str) -> None:
    rng = np.random.default_rng(seed)
    scene = Scene("gray", (Thing("yellow", shape, size, 4),))
    image = paint((128, 128, 128), [(shape, RADIUS[size], (250, 220, 30), 64, 64)], SQUARE)
    for axis in (0, 1):
        image = (np.roll(image, 1, axis) + image + np.roll(image, -1, axis)) / np.float32(3)
    pixels = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    assert judge(scene, see(pixels))["all"]


def test_blobs_are_the_connected_parts() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[1, 1:8] = mask[1:8, 7] = mask[7, 3:8] = mask[4:8, 3] = True  # a hook
    mask[4, 5] = True
    parts = blobs(mask)
    assert sorted(int(p.sum()) for p in parts) == [1, int(mask.sum()) - 1]
    assert np.array_equal(np.sum(parts, axis=0), mask)

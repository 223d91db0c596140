"""The measurements: only held-out scenes are asked for, and each figure moves as it should."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.bench.shapes.captions import FORMS, Scene, Size, Thing, held_out
from diffusion_rt.bench.shapes.check import (
    OTHERS,
    SQUARE,
    Ask,
    accuracy,
    ask_for,
    colour_share,
    held_out_scenes,
    records,
    sharpness,
)
from diffusion_rt.bench.shapes.draw import Pixels, View, draw, fits, plain_view
from diffusion_rt.bench.shapes.pool import KINDS


@cache
def _known() -> dict[tuple[str, Size], Scene]:
    """What each request of a small run of the checker asks for."""
    return {
        (ask_for(scene, form, size).prompt, size): scene
        for kind in KINDS
        for size in (SQUARE, *OTHERS)
        for scene in held_out_scenes(kind, 12, size)
        for form in range(FORMS)
    }


def _truth(asks: Sequence[Ask], every: int = 1) -> list[Pixels]:
    """A perfect artist, but that only each `every`-th picture is more than its background."""
    pictures = []
    for i, ask in enumerate(asks):
        default = Scene("white", (Thing("red", "circle", "large", 4),))
        scene = _known().get((ask.prompt, ask.size), default)
        if ask.negative_prompt == "red":
            scene = Scene("white", (Thing("blue", "circle", "large", 4),))
        if i % every:
            scene = Scene(scene.background, ())
        shrink = SQUARE[0] // ask.original_size[0] if ask.original_size else 1
        pictures.append(draw(scene, View(ask.size, ask.size, shrink=shrink)))
    return pictures


@pytest.mark.parametrize("kind", KINDS)
def test_only_held_out_scenes_are_asked_for(kind: str) -> None:
    for size in (SQUARE, OTHERS[0]):
        scenes = held_out_scenes(kind, 10, size)  # type: ignore[arg-type]
        assert all(held_out(s) and fits(s, size) for s in scenes)
        assert scenes == held_out_scenes(kind, 10, size)  # type: ignore[arg-type]


def test_a_perfect_artist_is_all_right(tmp_path: Path) -> None:
    found = {r["what"]: r for r in records(_truth, 12, full=True, sheets=tmp_path)}
    for name in ("one object", "two objects", "counts", "bucket 160x96"):
        assert found[name]["all"] == 1.0, name
    assert found["negative prompt red"]["without"] == 1.0
    assert found["negative prompt red"]["with"] == 0.0
    sharp = [found[f"sharpness at original size {side}"]["value"] for side in (32, 64, 128)]
    assert sharp[0] < sharp[1] < sharp[2]
    assert (tmp_path / "one-object.png").stat().st_size > 0


def test_an_artist_that_leaves_out_half_is_half_right() -> None:
    found = records(lambda asks: _truth(asks, every=2), 12, full=False, sheets=None)
    assert [r["all"] for r in found] == [0.5, 0.5]
    assert [r["background"] for r in found] == [1.0, 1.0]
    assert [r["count"] for r in found] == [0.5, 0.5]


def test_shares_and_sharpness_of_known_pictures() -> None:
    red = Scene("white", (Thing("red", "circle", "large", 3), Thing("blue", "star", "small", 5)))
    picture = draw(red, plain_view(SQUARE))
    assert colour_share([picture], "red") == 0.5
    assert colour_share([np.full_like(picture, 250)], "red") == 0.0
    assert accuracy([red], [picture])[0]["all"] == 1.0
    soft = draw(red, View(SQUARE, SQUARE, shrink=4))
    assert sharpness([soft]) < 0.7 * sharpness([picture])

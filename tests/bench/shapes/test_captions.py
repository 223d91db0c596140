"""The grammar, and the share of scenes kept out of training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.bench.shapes.captions import (
    FORMS,
    Kind,
    Scene,
    Thing,
    Wording,
    caption,
    fragment,
    held_out,
    sample_scene,
    sample_wording,
    vocabulary,
)
from diffusion_rt.bench.shapes.pool import KINDS, plan

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


@settings(max_examples=50, deadline=None)
@given(seeds, kinds)
def test_every_word_of_a_caption_is_in_the_vocabulary(seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, kind)
    words = caption(scene, sample_wording(rng, omit=0.3)).replace(",", " ,").split()
    assert set(words) <= set(vocabulary())
    assert set(fragment(scene, rng).split()) <= set(vocabulary())


@settings(max_examples=50, deadline=None)
@given(seeds, kinds)
def test_a_caption_has_at_most_21_words(seed: int, kind: Kind) -> None:
    scene = sample_scene(np.random.default_rng(seed), kind)
    for form in range(FORMS):
        text = caption(scene, Wording(form=form))
        assert len(text.replace(",", " ,").split()) <= 21


def test_captions_read_as_english() -> None:
    star, circle = Thing("blue", "star", "large", 5), Thing("red", "circle", "small", 3)
    assert (
        caption(Scene("white", (star,))) == "a large blue star on the right on a white background"
    )
    two = Scene("gray", (star, circle), "relation", "right of")
    assert caption(two) == "a large blue star right of a small red circle on a gray background"
    assert (
        caption(two, Wording(form=1))
        == "a large blue star to the right of a small red circle on a gray background"
    )
    row = Scene("navy", (circle, Thing("red", "circle", "small", 5)), "row")
    assert caption(row, Wording(form=2)) == "two small red circles, navy background"
    bare = Wording(colour=False, size=False, place=False, background=False)
    assert caption(Scene("white", (star,)), bare) == "a star"


def test_one_scene_in_ten_is_held_out() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([held_out(sample_scene(rng, KINDS[i % 4])) for i in range(4000)])
    assert 0.08 < share < 0.12


def test_wording_and_order_do_not_move_a_scene_over_the_line() -> None:
    star, circle = Thing("blue", "star", "large", 5), Thing("red", "circle", "small", 3)
    keys = {
        Scene("gray", (star, circle), "relation", "right of").key,
        Scene("gray", (circle, star), "relation", "left of").key,
        Scene("gray", (circle, star), "pair").key,
    }
    assert len(keys) == 1


@pytest.mark.parametrize("seed", [100, 101])
def test_no_training_picture_shows_a_held_out_scene(seed: int) -> None:
    samples = [plan(seed, index) for index in range(400)]
    assert not any(held_out(sample.scene) for sample in samples)
    assert samples[7] == plan(seed, 7)

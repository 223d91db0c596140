"""Noise against the programs whose draws it repeats."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.noise import make_noise, philox_4x32

seeds = st.integers(-(2**63), 2**64 - 1)
shapes = st.one_of(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    st.integers(1, 40).map(lambda n: (n,)),
    st.tuples(st.just(1), st.just(4), st.integers(1, 40), st.integers(1, 40)),
)


def furthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max(initial=0))


@settings(max_examples=150, deadline=None)
@given(seed=seeds, draws=st.lists(shapes, min_size=1, max_size=5))
@example(seed=0, draws=[(3,), (1,), (17,), (15,), (16,), (4,), (31,), (2,)])
@example(seed=-1, draws=[(1,), (1, 4, 17, 23), (1,), (0,), (2,)])
@example(seed=2**64 - 1, draws=[(1, 4, 128, 128)])
@example(seed=2**32, draws=[(15,), (1, 4, 104, 152)])
def test_draws_are_those_of_torch_on_a_cpu(seed: int, draws: list[tuple[int, ...]]) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = make_noise("cpu", seed)
    for shape in draws:
        assert furthest(noise.normal(shape), torch.randn(shape, generator=generator).numpy()) < 4e-7


def test_large_draws_stay_close_in_the_tails() -> None:
    """Nearly all of them to the bit, on the CPUs that PyTorch has vector code for."""
    for seed in range(8):
        generator = torch.Generator("cpu").manual_seed(seed)
        theirs = torch.randn((1, 4, 256, 256), generator=generator).numpy()
        assert np.abs(theirs).max() > 4
        ours = make_noise("cpu", seed).normal(theirs.shape)
        assert furthest(ours, theirs) < 4e-7
        assert (ours != theirs).mean() < 2e-3


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers published with Random123 (Salmon et al., 2011)
        ("00000000 00000000 00000000 00000000", 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: int, words: str) -> None:
    start = np.array([[int(word, 16)] for word in counter.split()], np.uint32)
    assert " ".join(f"{word:08x}" for word in philox_4x32(start, key)[:, 0].tolist()) == words


def test_nv_gives_the_values_published_for_a_gpu() -> None:
    """torch.randn((3, 4), device="cuda") for seed 0, as stable-diffusion-webui prints it."""
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert furthest(make_noise("nv", 0).normal((3, 4)), np.array(published, np.float32)) < 5e-7


def straight_philox(counter: list[int], key: int) -> list[int]:
    """One block of Philox-4x32-10, word by word."""
    a, b, c, d = counter
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            right >> 32 ^ b ^ low,
            right & 0xFFFFFFFF,
            left >> 32 ^ d ^ high,
            left & 0xFFFFFFFF,
        )
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


@settings(max_examples=50, deadline=None)
@given(seed=seeds, draws=st.integers(1, 4), count=st.integers(1, 30))
def test_nv_makes_value_i_of_a_draw_from_block_i(seed: int, draws: int, count: int) -> None:
    noise = make_noise("nv", seed)
    for draw in range(draws):
        ours = noise.normal((count,))
        for i in range(count):
            first, second, *_ = straight_philox([draw, 0, i, 0], seed % 2**64)
            radius = np.sqrt(-2 * np.log((first + 0.5) / 2**32))
            wanted = radius * np.sin((second + 0.5) / 2**32 * 2 * np.pi)
            assert abs(ours[i] - wanted) < 4e-6


@pytest.mark.parametrize("kind", ["cpu", "nv"])
def test_seeds_are_told_apart_and_values_are_normal(kind: str) -> None:
    draws = np.stack([make_noise(kind, seed).normal((1, 4, 64, 64)) for seed in (0, 1, 2**31)])
    correlation = np.corrcoef(draws.reshape(3, -1)) - np.eye(3)
    assert np.abs(correlation).max() < 0.05
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "1", None, True])
def test_a_wrong_seed_is_bad_input(seed: object) -> None:
    with pytest.raises(BadInput, match="seed="):
        make_noise("cpu", seed)  # type: ignore[arg-type]


def test_an_unknown_source_is_bad_input() -> None:
    with pytest.raises(BadInput, match="did you mean 'nv'"):
        make_noise("nvidia", 1)

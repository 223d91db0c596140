"""The shapes of a step: their operations are those that were published, their sizes add up."""

from collections import Counter

import pytest

from diffusion_rt.bench.architectures import FULL
from diffusion_rt.bench.gpu_shapes import (
    SDXL,
    Attention,
    Conv,
    Gemm,
    GroupNorm,
    LayerNorm,
    Network,
    decode,
    flop,
    nbytes,
    of_kind,
    step,
)

T = 10**12


def test_a_step_and_a_decode_take_what_is_known_of_sdxl() -> None:
    """6.761 TFLOP for a row, keys and values of the prompt included, which a step leaves out."""
    prompt = sum(2 * 2 * 154 * width * 2048 * layers for width, layers in ((640, 10), (1280, 60)))
    assert (flop(step(1024, 1024)) + prompt) / T == pytest.approx(2 * 6.7612, rel=1e-4)
    assert flop(decode(1024, 1024)) / T == pytest.approx(10.470, rel=1e-4)
    small = flop(step(512, 512, rows=1)) + prompt // 2
    assert small / T == pytest.approx(1.589, rel=1e-3)


def test_the_heaviest_product_is_that_of_the_feed_forward() -> None:
    shape, count = next(iter(of_kind(step(1024, 1024), Gemm)))
    assert (shape, count) == (Gemm(2048, 10240, 1280), 60)


def test_every_attention_and_normalisation_is_there() -> None:
    found = step(1024, 1024)
    assert dict(of_kind(found, Attention)) == {
        Attention(2, 10, 4096, 4096): 10,
        Attention(2, 20, 1024, 1024): 60,
        Attention(2, 10, 4096, 77): 10,
        Attention(2, 20, 1024, 77): 60,
    }
    assert sum(count for _, count in of_kind(found, LayerNorm)) == 3 * 70
    assert sum(count for _, count in of_kind(found, GroupNorm)) == 2 * 17 + 11 + 1
    assert sum(count for _, count in of_kind(found, Conv)) == 2 * 17 + 2 + 2 + 2


@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (1536, 640), (640, 1536), (64, 64)])
def test_shapes_are_those_of_the_picture(width: int, height: int) -> None:
    found = step(width, height)
    pixels = width * height // 64
    ends = [shape for shape, _ in of_kind(found, Conv) if shape.filters == 4]
    assert [(end.height * end.width, end.channels) for end in ends] == [(pixels, 320)]
    last = [shape for shape, _ in of_kind(decode(width, height), Conv) if shape.filters == 3]
    assert [(end.height, end.width) for end in last] == [(height, width)]


def test_one_row_is_half_of_two() -> None:
    assert 2 * flop(step(1024, 1024, rows=1)) == flop(step(1024, 1024))
    assert flop(Counter()) == 0


def test_networks_are_read_from_their_configs() -> None:
    assert Network.of(FULL["sdxl-base"].unet) == SDXL
    assert Network.of(FULL["sdxl-refiner"].unet).levels == (
        (384, 0, 6),
        (768, 4, 12),
        (1536, 4, 24),
        (1536, 0, 24),
    )
    assert Network.of(FULL["sd-1.5"].unet) == Network(
        ((320, 1, 8), (640, 1, 8), (1280, 1, 8), (1280, 0, 8)), 1
    )
    with pytest.raises(ValueError, match="differ in length"):
        Network.of({**FULL["sdxl-base"].unet, "attention_head_dim": [5]})


def test_stable_diffusion_1_takes_what_is_known_of_it() -> None:
    """About 0.34 TMAC for a forward at 512x512, as profilers count it: attention left out."""
    found = step(512, 512, rows=1, network=Network.of(FULL["sd-1.5"].unet))
    linear = flop(found) - sum(a.flop * count for a, count in of_kind(found, Attention))
    assert linear / 2 / T == pytest.approx(0.339, rel=0.03)


def test_a_step_reads_every_weight_and_hardly_more_for_one_row() -> None:
    one, two = (nbytes(step(512, 512, rows), 2) for rows in (1, 2))
    weights = 2 * one - two  # what does not grow with the rows
    # 5.135 GB in all, less the keys and values of the prompt and what becomes of the timestep.
    assert 4.2e9 < weights < 5.0e9

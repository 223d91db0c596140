"""Generated checkpoints: as large as published ones, finite, the same every time."""

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_rt.bench.architectures import SDXL_BASE, SDXL_SMALL
from diffusion_rt.bench.checkpoint import (
    law,
    make_checkpoint,
    shapes_of,
    uniform,
    write_weights,
)
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.runtime.tokens import Tokenizer

SHAPES = {
    "conv.weight": (6, 5, 3, 3),
    "norm.weight": (7,),
    "token_embedding.weight": (11, 4),
    "linear.bias": (5,),
    "large.weight": (3, 1 << 21),  # more than one block
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_are_the_same_every_time(tmp_path: Path, dtype: str) -> None:
    first, second, other = (tmp_path / f"{name}.safetensors" for name in "abc")
    assert write_weights(first, SHAPES, dtype) == sum(map(math.prod, SHAPES.values()))
    write_weights(second, SHAPES, dtype)
    write_weights(other, SHAPES, dtype, seed=1)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    found = load_file(first)
    assert {name: value.shape for name, value in found.items()} == SHAPES
    for name, value in found.items():
        assert value.dtype == np.dtype(dtype)
        assert np.isfinite(value).all()
        assert (value != 0).all()
        center, scale = law(name, SHAPES[name])
        assert np.abs(value - center).max() <= 1.8 * scale


def test_draws_have_unit_variance() -> None:
    draw = uniform(3)
    assert np.abs(draw.mean()) < 2e-3
    assert draw.std() == pytest.approx(1, abs=0.01)
    assert np.abs(draw).min() >= 0.01


def test_the_unet_of_sdxl_is_as_large_as_the_published_one() -> None:
    from diffusers import UNet2DConditionModel

    shapes = shapes_of(UNet2DConditionModel.from_config, SDXL_BASE.unet)
    assert sum(map(math.prod, shapes.values())) == 2_567_463_684


def test_a_small_one_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    folder = tmp_path / "small"
    told: list[tuple[int, int]] = []
    count = make_checkpoint(folder, SDXL_SMALL, progress=lambda *done: told.append(done))
    assert told[-1] == (count, count)
    found = open_checkpoint(folder)
    tensors = [network.weights.values() for network in found.networks.values()]
    assert sum(len(group) for group in tensors) > 300
    tokenizer = Tokenizer.open(folder / "tokenizer_2")
    assert tokenizer.size == 514

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16).float()
    with torch.no_grad():
        prediction = unet(
            torch.randn(1, 4, 8, 8),
            601.0,
            encoder_hidden_states=torch.randn(1, 7, 96),
            added_cond_kwargs={"text_embeds": torch.randn(1, 64), "time_ids": torch.ones(1, 6)},
        ).sample
    assert torch.isfinite(prediction).all()
    assert 0.05 < prediction.std() < 20, "activations keep their size"
    with pytest.raises(BadInput, match="is not empty"):
        make_checkpoint(folder, SDXL_SMALL)

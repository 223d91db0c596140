"""The architectures people deploy: as large as published, drawn by diffusers, finite in float16."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from diffusion_rt.bench.architectures import EXPORTABLE, FULL, XL, narrow
from diffusion_rt.bench.checkpoint import make_checkpoint, shapes_of, write_weights
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export.checkpoint import open_checkpoint

# Parameters of the UNets as published; of the refiner only that they are 2.3 billion.
PUBLISHED = {
    "sdxl-base": 2_567_463_684,
    "sdxl-turbo": 2_567_463_684,
    "sdxl-refiner": 2_259_526_660,
    "sd-1.5": 859_520_964,
    "sd-2.1": 865_910_724,
}
LARGEST = 65504 / 8  # of an activation: far from what float16 cannot hold


@pytest.mark.parametrize("name", FULL)
def test_a_full_unet_is_as_large_as_the_published_one(name: str) -> None:
    shapes = shapes_of(UNet2DConditionModel.from_config, FULL[name].unet)
    assert sum(map(math.prod, shapes.values())) == PUBLISHED[name]


class Largest:
    """The largest magnitude that any module of a network has put out."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.value = 0.0
        for module in network.modules():
            module.register_forward_hook(self._look)

    def _look(self, module: torch.nn.Module, given: Any, found: Any) -> None:
        for value in found if isinstance(found, tuple) else (getattr(found, "sample", found),):
            if torch.is_tensor(value) and value.is_floating_point():
                self.value = max(self.value, float(value.abs().max().nan_to_num(math.inf)))


@pytest.mark.parametrize("name", FULL)
def test_diffusers_draws_with_it_and_nothing_grows_beyond_float16(
    name: str, tmp_path: Path
) -> None:
    """A narrow network of full depth, computed in float16."""
    folder = tmp_path / "narrow"
    make_checkpoint(folder, narrow(FULL[name]))
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == FULL[name].pipeline
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    networks = {part: getattr(pipeline, part, None) for part in parts}
    seen = {part: Largest(network) for part, network in networks.items() if network is not None}
    given: dict[str, Any] = {"width": 64, "height": 64}
    if "Img2Img" in FULL[name].pipeline:
        draw = torch.Generator().manual_seed(1)
        given = {"image": torch.rand(1, 3, 64, 64, generator=draw), "strength": 0.5}
    images = pipeline(
        "a lighthouse",
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **given,
    ).images
    assert images.shape == (1, 64, 64, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.05, "a picture, not a plane"
    for part, largest in seen.items():
        assert 1 < largest.value < LARGEST, part


@pytest.mark.parametrize("name", ["sdxl-base", "sd-1.5"])
def test_nothing_grows_beyond_float16_at_full_width(name: str, tmp_path: Path) -> None:
    """The widest level with attention by itself, of less depth, computed in float16."""
    whole = FULL[name].unet
    heads = whole["attention_head_dim"]
    config = {
        **whole,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "block_out_channels": whole["block_out_channels"][-1:],
        "attention_head_dim": heads if isinstance(heads, int) else heads[-1:],
        "transformer_layers_per_block": 2,
        "layers_per_block": 1,
    }
    shapes = shapes_of(UNet2DConditionModel.from_config, config)
    write_weights(tmp_path / "unet.safetensors", shapes)
    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config(config)
    network.load_state_dict(load_file(tmp_path / "unet.safetensors"), assign=True)
    seen = Largest(network)
    draw = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).half()

    added = {"text_embeds": noise(1, 1280), "time_ids": torch.full((1, 6), 1024.0)}
    with torch.no_grad():
        context = noise(1, 77, config["cross_attention_dim"])
        given = {"added_cond_kwargs": added} if "addition_embed_type" in config else {}
        found = network(noise(1, 4, 4, 4), 601.0, encoder_hidden_states=context, **given).sample
    assert torch.isfinite(found).all()
    assert 0.05 < found.float().std() < 20
    assert 1 < seen.value < LARGEST


@pytest.mark.parametrize("name", FULL)
def test_what_export_takes_is_what_is_offered_for_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "narrow"
    make_checkpoint(folder, narrow(FULL[name]))
    if name in EXPORTABLE:
        assert FULL[name].pipeline == XL
        assert open_checkpoint(folder).index["_class_name"] == XL
    else:
        with pytest.raises(BadInput, match="so far"):
            open_checkpoint(folder)

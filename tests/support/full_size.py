"""A checkpoint of the real SDXL base architecture with generated weights: 6.9 GB in float16.

The weights are written as they are made, a block at a time; none is zero.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from support.checkpoints import EOS, SCHEDULER, TEXT, UNET, VAE, make_tokenizer, write_json

SDXL_UNET: dict[str, Any] = {
    **UNET,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
SDXL_VAE: dict[str, Any] = {
    **VAE,
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
CLIP_L: dict[str, Any] = {
    **TEXT,
    "vocab_size": 49408,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
}
CLIP_BIG_G: dict[str, Any] = {
    **CLIP_L,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "architectures": ["CLIPTextModelWithProjection"],
}
BLOCK = 1 << 22  # weights written at a time


def make_full_size_checkpoint(folder: Path) -> int:
    """Write the checkpoint into `folder`; the number of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder / "tokenizer", pad_token=EOS, age="old")
    make_tokenizer(folder / "tokenizer_2", pad_token="!", age="old")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", SCHEDULER["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    count = 0
    for name, config, kind in (
        ("text_encoder", CLIP_L, CLIPTextModel),
        ("text_encoder_2", CLIP_BIG_G, CLIPTextModelWithProjection),
    ):
        settings = CLIPTextConfig(**config)
        settings.save_pretrained(folder / name)
        with torch.device("meta"):
            shapes = shapes_of(kind(settings))
        count += write_weights(folder / name / "model.safetensors", shapes)
    for name, config, kind in (
        ("unet", SDXL_UNET, UNet2DConditionModel),
        ("vae", SDXL_VAE, AutoencoderKL),
    ):
        with torch.device("meta"):
            network = kind.from_config(config)
        network.save_config(folder / name)
        shapes = shapes_of(network)
        count += write_weights(folder / name / "diffusion_pytorch_model.safetensors", shapes)
    return count


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Write a safetensors file of float16 weights about 0.02, none zero; how many they are."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    draw = np.random.default_rng(0).uniform(0.005, 0.04, BLOCK).astype(np.float16)
    draw[::2] *= -1
    block = memoryview(draw.tobytes())
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, end, len(block)):
            file.write(block[: min(len(block), end - start)])
    return end // 2

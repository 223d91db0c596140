"""Checkpoints of real architectures with generated weights, so that nobody has to download any.

Every weight depends on its name and the seed alone and none is zero. They are scaled by the number
of values that each output sums, so that activations keep their size through any depth and stay
finite in float16. Nothing is held in memory but one block.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import writing
from diffusion_rt.engines.errors import BadInput

Config = Mapping[str, Any]
Progress = Callable[[int, int], None]  # weights written, of all

BLOCK = 1 << 22  # weights drawn; a tensor takes them from its own place on, round and round
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
DTYPES = {"float16": "F16", "float32": "F32"}

_TEXT: Config = {
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The configs of an SDXL checkpoint's networks and its scheduler, as diffusers spells them."""

    unet: Config
    vae: Config
    text_encoder: Config
    text_encoder_2: Config
    scheduler: Config
    model_index: Config


SDXL_BASE = Architecture(
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],  # numbers of heads, by a misnomer that stayed
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={
        "_class_name": "AutoencoderKL",
        "sample_size": 1024,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    text_encoder={
        **_TEXT,
        "architectures": ["CLIPTextModel"],
        "vocab_size": 49408,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    text_encoder_2={
        **_TEXT,
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": 49408,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    scheduler={
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    model_index={"force_zeros_for_empty_prompt": True},
)
# The same blocks and names with next to no weights, to try a benchmark with.
SDXL_SMALL = Architecture(
    unet={
        **SDXL_BASE.unet,
        "sample_size": 16,
        "block_out_channels": [32, 64, 96],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 2, 3],
        "cross_attention_dim": 96,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + 64,
    },
    vae={**SDXL_BASE.vae, "sample_size": 128, "block_out_channels": [32] * 4},
    text_encoder={
        **SDXL_BASE.text_encoder,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
    },
    text_encoder_2={
        **SDXL_BASE.text_encoder_2,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "projection_dim": 64,
    },
    scheduler=SDXL_BASE.scheduler,
    model_index=SDXL_BASE.model_index,
)
ARCHITECTURES = {"sdxl-base": SDXL_BASE, "sdxl-small": SDXL_SMALL}


def make_checkpoint(
    folder: Path,
    architecture: Architecture,
    *,
    dtype: str = "float16",
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write a checkpoint in diffusers layout into an empty or new folder; how many weights it has.

    Raises BadInput where the folder holds anything, or has no room.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty; name a new folder for the generated checkpoint")
    a = architecture
    networks: dict[str, tuple[Config, Callable[[Any], Any], str]] = {
        "unet": (a.unet, UNet2DConditionModel.from_config, "diffusion_pytorch_model"),
        "vae": (a.vae, AutoencoderKL.from_config, "diffusion_pytorch_model"),
        "text_encoder": (a.text_encoder, lambda c: CLIPTextModel(CLIPTextConfig(**c)), "model"),
        "text_encoder_2": (
            a.text_encoder_2,
            lambda c: CLIPTextModelWithProjection(CLIPTextConfig(**c)),
            "model",
        ),
    }
    shapes = {name: shapes_of(make, config) for name, (config, make, _) in networks.items()}
    total = sum(math.prod(shape) for of in shapes.values() for shape in of.values())
    done = 0
    for name, (config, _, stem) in networks.items():
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", config)
        path = folder / name / f"{stem}.safetensors"
        done += write_weights(path, shapes[name], dtype, seed)
        progress(done, total)
    _write_json(folder / "model_index.json", _index(a.model_index, str(a.scheduler["_class_name"])))
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", a.scheduler)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    return done


def shapes_of(make: Callable[[Any], Any], config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a network, made without memory for it."""
    import torch

    with torch.device("meta"):
        network = make(dict(config))
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def write_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float16", seed: int = 0
) -> int:
    """Write a safetensors file of generated weights; how many they are."""
    size = np.dtype(dtype).itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    noise = uniform(seed)
    with writing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            center, scale = law(name, shape)
            values = (np.float32(center) + np.float32(scale) * noise).astype(dtype)
            block = memoryview(values.tobytes())
            place = size * (zlib.crc32(name.encode()) % BLOCK)
            left = size * math.prod(shape)
            while left:
                count = min(left, len(block) - place)
                file.write(block[place : place + count])
                left, place = left - count, 0
    return end // size


def uniform(seed: int) -> NDArray[np.float32]:
    """Uniform draws of variance 1, none within 0.01 of zero, float32 [BLOCK]."""
    draw = np.random.default_rng(seed)
    size = draw.uniform(0.01, math.sqrt(3), BLOCK).astype(np.float32)
    return np.where(draw.random(BLOCK, np.float32) < 0.5, size, -size)


def law(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The mean of a parameter's values and their deviation."""
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.1
    if "embedding.weight" in name:  # tables of tokens and positions
        return 0.0, 0.5
    if len(shape) > 1:
        return 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    return 0.0, 0.1


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that knows single bytes alone: 514 tokens, of 49408 in CLIP's own."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    # GPT-2's table: bytes that are no visible character stand as those from 256 on.
    letters = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(len(hidden))]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {word: number for number, word in enumerate([*words, BOS, EOS])}
    folder.mkdir()
    _write_json(folder / "vocab.json", ids)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": EOS,
            "pad_token": EOS,
        },
    )


def _index(fields: Config, scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        **fields,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

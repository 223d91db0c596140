"""Tiny random SDXL checkpoints in diffusers layout: every block and name of the real ones.

`make_tiny_checkpoint` writes one from configs and a seed, in the spelling and file layout of either
age. No weight is zero and no two tensors are alike, so that one bound to a wrong place shows.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

Age = Literal["current", "old"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = """
    a an the of in on and with small large red green blue yellow circle square star picture photo
    cat dog lighthouse background left right above below painting detailed bright dark sea sky
""".split()  # noqa: SIM905

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 48],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [2, 2, 3],  # SDXL's configs name the number of heads so
    "cross_attention_dim": 56,  # both text encoders' widths
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT: dict[str, Any] = {
    "max_position_embeddings": 77,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 24,
    "intermediate_size": 96,
    "projection_dim": 24,
    "hidden_act": "quick_gelu",
    "architectures": ["CLIPTextModel"],
}
TEXT_2: dict[str, Any] = {
    **TEXT,
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "hidden_act": "gelu",
    "architectures": ["CLIPTextModelWithProjection"],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

# Arguments of `make_tiny_checkpoint` for checkpoints that differ in what a pipeline must get right.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {
        "seed": 1,
        "dtype": "float16",
        "unet": {"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 3]},
        "scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    },
    "odd": {
        "seed": 2,
        "age": "old",
        "unet": {"use_linear_projection": False, "block_out_channels": [24, 32, 64]},
        "vae": {
            "scaling_factor": 0.5,
            "latents_mean": [0.1, -0.2, 0.3, 0.05],
            "latents_std": [0.8, 1.2, 0.9, 1.1],
            "force_upcast": False,
        },
        "scheduler": {"timestep_spacing": "trailing", "beta_schedule": "linear"},
    },
}

# The least that is still SDXL, for tests of what happens around the graphs.
LEAST: dict[str, Any] = {
    "unet": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "transformer_layers_per_block": 1,
        "attention_head_dim": 2,
    },
    "text_encoder": {"num_hidden_layers": 1},
    "text_encoder_2": {"num_hidden_layers": 1},
}

MakeCheckpoint = Callable[..., Path]  # takes a name for the folder, and make_tiny_checkpoint's own


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Values for one parameter that depend on its name and the seed alone.

    Scaled by the fan-in so that activations keep their size through any depth; norm weights lie
    about 1.
    """
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = draw.standard_normal(shape, dtype=np.float32)
    if "norm" in name and name.endswith("weight"):
        return np.float32(1) + np.float32(0.1) * noise
    if "embedding.weight" in name:  # token and position tables
        return np.float32(0.5) * noise
    if len(shape) > 1:
        return noise / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(0.1) * noise


def old_text_name(name: str) -> str:
    """The published spelling of a CLIPTextModel parameter."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def old_vae_name(name: str) -> str:
    """The spelling of the VAE's mid-block attention before diffusers 0.15."""
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def make_tokenizer(folder: Path, *, pad_token: str, age: Age = "current") -> int:
    """Write a CLIP byte-pair tokenizer with a small vocabulary; returns the vocabulary's size.

    Old folders hold vocab.json and merges.txt as published, current ones what transformers writes.
    """
    letters = sorted(ByteLevel.alphabet())
    vocabulary = ["!", *(c for c in letters if c != "!"), *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                vocabulary.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    vocabulary = [*dict.fromkeys(vocabulary), BOS, EOS]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary)}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}
    if age == "current":
        CLIPTokenizer(
            vocab=ids,
            merges=merges,  # type: ignore[arg-type]
            model_max_length=77,
            **special,
        ).save_pretrained(str(folder))
        return len(ids)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marked = {
        "bos_token": {"content": BOS, "lstrip": False, "normalized": True, "rstrip": False},
        "eos_token": {"content": EOS, "lstrip": False, "normalized": True, "rstrip": False},
        "unk_token": {"content": EOS, "lstrip": False, "normalized": True, "rstrip": False},
    }
    write_json(folder / "special_tokens_map.json", {**marked, "pad_token": pad_token})
    tagged = {key: {"__type": "AddedToken", "single_word": False, **v} for key, v in marked.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            **tagged,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": pad_token,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    return len(ids)


def write_json(path: Path, content: object) -> None:
    """Write one JSON file as diffusers does: indented, ending in a line feed."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_weights(
    folder: Path,
    stem: str,
    weights: Mapping[str, torch.Tensor],
    *,
    variant: str | None = None,
    shards: int = 1,
) -> None:
    """Write one component's weights as one safetensors file, or as shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = f".{variant}" if variant else ""
    if shards == 1:
        save_file(dict(weights), folder / f"{stem}{tag}.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, names in enumerate(split(list(weights), shards), start=1):
        file = f"{stem}{tag}-{number:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    index = f"{stem}.safetensors.index{tag}.json"
    write_json(folder / index, {"metadata": {"total_size": size}, "weight_map": places})


def split(names: list[str], parts: int) -> Iterator[list[str]]:
    """Cut a list into runs of nearly equal length."""
    edges = [round(len(names) * part / parts) for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        yield names[start:stop]


def make_tiny_checkpoint(
    folder: Path | str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    age: Age = "current",
    variant: str | None = None,
    shards: int = 1,
    conv_attention: bool = False,
    unet: Mapping[str, Any] = {},
    vae: Mapping[str, Any] = {},
    text_encoder: Mapping[str, Any] = {},
    text_encoder_2: Mapping[str, Any] = {},
    scheduler: Mapping[str, Any] = {},
    model_index: Mapping[str, Any] = {},
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random SDXL checkpoint of about a million weights and return its folder.

    `age="old"` spells parameters as the published files do (and adds their `position_ids`); with
    `conv_attention` the VAE's attention weights are stored as 1x1 convolutions, as LDM had them, a
    form diffusers itself does not load. `variant` and `shards` say how the files are named. The
    mappings override single entries of the configs above; `generation`, where given, becomes
    `generation_config.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [
        make_tokenizer(folder / "tokenizer", pad_token=EOS, age=age),
        make_tokenizer(folder / "tokenizer_2", pad_token="!", age=age),
    ]
    save = partial(save_weights, variant=variant, shards=shards)

    def dressed(
        names: Iterable[tuple[str, torch.Tensor]], component: str
    ) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(
                random_weight(f"{component}.{name}", tuple(parameter.shape), seed)
            ).to(DTYPES[dtype])
            for name, parameter in names
        }

    for name, number, config, kind in (
        ("text_encoder", 0, {**TEXT, **text_encoder}, CLIPTextModel),
        ("text_encoder_2", 1, {**TEXT_2, **text_encoder_2}, CLIPTextModelWithProjection),
    ):
        size = sizes[number]
        ids = {
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
            "pad_token_id": (size - 1, 0)[number],
        }
        settings = CLIPTextConfig(**{"vocab_size": size, **ids, **config}, dtype=dtype)
        settings.save_pretrained(folder / name)
        with torch.device("meta"):
            parameters = dict(kind(settings).named_parameters())
        weights = dressed(parameters.items(), name)
        if age == "old":
            weights = {old_text_name(key): value for key, value in weights.items()}
            weights["text_model.embeddings.position_ids"] = torch.arange(
                settings.max_position_embeddings
            )[None]
        save(folder / name, "model", weights)

    with torch.device("meta"):
        network = UNet2DConditionModel.from_config({**UNET, **unet})
        coder = AutoencoderKL.from_config({**VAE, **vae})
    network.save_config(folder / "unet")
    weights = dressed(network.named_parameters(), "unet")
    save(folder / "unet", "diffusion_pytorch_model", weights)
    coder.save_config(folder / "vae")
    weights = dressed(coder.named_parameters(), "vae")
    if age == "old":
        weights = {old_vae_name(key): value for key, value in weights.items()}
    if conv_attention:
        weights = {
            key: value[:, :, None, None] if ".attentions." in key and value.dim() == 2 else value
            for key, value in weights.items()
        }
    save(folder / "vae", "diffusion_pytorch_model", weights)

    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler/scheduler_config.json", {**SCHEDULER, **scheduler})
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", {**SCHEDULER, **scheduler}["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **model_index,
    }
    write_json(folder / "model_index.json", index)
    if generation is not None:
        write_json(folder / "generation_config.json", dict(generation))
    return folder

"""The architectures people deploy, as their published configs spell them, and narrow ones to test.

A config holds what it takes to make the networks; what diffusers and transformers take by default
is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Config = Mapping[str, Any]

XL, SD, REFINER = (
    "StableDiffusionXLPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The configs of a checkpoint's networks and its scheduler, as diffusers spells them.

    `text_encoders` are by the component whose place they fill, `text_encoder` or `text_encoder_2`;
    each has the tokenizer that goes with its place.
    """

    pipeline: str
    unet: Config
    vae: Config
    text_encoders: Mapping[str, Config]
    scheduler: Config
    model_index: Config = field(default_factory=dict)  # what else model_index.json says


_TEXT: Config = {
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
    "vocab_size": 49408,
}
CLIP_L: Config = {
    **_TEXT,
    "architectures": ["CLIPTextModel"],
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_H: Config = {
    **_TEXT,
    "architectures": ["CLIPTextModel"],
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_BIG_G: Config = {
    **_TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_VAE_XL: Config = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_VAE_SD: Config = {**_VAE, "sample_size": 512, "scaling_factor": 0.18215, "force_upcast": False}
_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
}
_SCHEDULE: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}

SDXL_BASE = Architecture(
    pipeline=XL,
    unet={
        **_UNET,
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],  # numbers of heads, by a misnomer that stayed
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=_VAE_XL,
    text_encoders={"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G},
    scheduler={"_class_name": "EulerDiscreteScheduler", **_SCHEDULE},
    model_index={"force_zeros_for_empty_prompt": True},
)
SDXL_TURBO = replace(
    SDXL_BASE,
    unet={**SDXL_BASE.unet, "sample_size": 64},
    scheduler={
        **_SCHEDULE,
        "_class_name": "EulerAncestralDiscreteScheduler",
        "timestep_spacing": "trailing",
    },
)
SDXL_REFINER = Architecture(
    pipeline=REFINER,
    unet={
        **SDXL_BASE.unet,
        "down_block_types": [
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [384, 768, 1536, 1536],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 5 * 256 + 1280,  # an aesthetic score for a size
    },
    vae=_VAE_XL,
    text_encoders={"text_encoder_2": CLIP_BIG_G},
    scheduler=SDXL_BASE.scheduler,
    model_index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
)
_SD: Config = {
    **_UNET,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
}
SD_1_5 = Architecture(
    pipeline=SD,
    unet={**_SD, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    vae=_VAE_SD,
    text_encoders={"text_encoder": CLIP_L},
    scheduler={
        "_class_name": "PNDMScheduler",
        **_SCHEDULE,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
    },
    model_index={"requires_safety_checker": False},
)
SD_2_1 = Architecture(
    pipeline=SD,
    unet={
        **_SD,
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    vae=_VAE_SD,
    text_encoders={"text_encoder": CLIP_H},
    scheduler={
        "_class_name": "DDIMScheduler",
        **_SCHEDULE,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "clip_sample": False,
    },
    model_index={"requires_safety_checker": False},
)

FULL = {
    "sdxl-base": SDXL_BASE,
    "sdxl-turbo": SDXL_TURBO,
    "sdxl-refiner": SDXL_REFINER,
    "sd-1.5": SD_1_5,
    "sd-2.1": SD_2_1,
}


def narrow(architecture: Architecture) -> Architecture:
    """The same depth and the same blocks with next to no weights, to test with.

    Channels are a tenth, of which group normalisation wants multiples of 32; a head is 32 wide.
    """
    a = architecture
    full = a.unet["block_out_channels"]
    channels = [max(32, 32 * round(width / 320)) for width in full]
    texts = {name: _narrow_text(config) for name, config in a.text_encoders.items()}
    unet = {
        **a.unet,
        "sample_size": 16,
        "block_out_channels": channels,
        "attention_head_dim": [width // 32 for width in channels],
        "cross_attention_dim": sum(config["hidden_size"] for config in texts.values()),
    }
    if "addition_embed_type" in unet:
        sizes = (unet["projection_class_embeddings_input_dim"] - 1280) // 256
        pooled = texts["text_encoder_2"]["projection_dim"]
        unet["addition_time_embed_dim"] = 16
        unet["projection_class_embeddings_input_dim"] = sizes * 16 + pooled
    vae = {**a.vae, "sample_size": 128, "block_out_channels": [32, 32, 64, 64]}
    return replace(a, unet=unet, vae=vae, text_encoders=texts)


def _narrow_text(config: Config) -> Config:
    heads = max(1, config["hidden_size"] // 640)
    return {
        **config,
        "num_attention_heads": heads,
        "hidden_size": 32 * heads,
        "intermediate_size": 128 * heads,
        "projection_dim": 32 * heads,
    }


def _small(architecture: Architecture) -> Architecture:
    """Narrow and of few layers: next to no work, to try a benchmark with."""
    a = narrow(architecture)
    unet = {**a.unet, "layers_per_block": 1, "transformer_layers_per_block": [1, 1, 2]}
    texts = {name: {**config, "num_hidden_layers": 3} for name, config in a.text_encoders.items()}
    return replace(a, unet=unet, text_encoders=texts)


SDXL_SMALL = _small(SDXL_BASE)
ARCHITECTURES = {**FULL, "sdxl-small": SDXL_SMALL}
EXPORTABLE = [name for name, found in ARCHITECTURES.items() if found.pipeline == XL]

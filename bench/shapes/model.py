"""The parts of `shapes-xl` and its checkpoint folder, in the layout diffusers loads."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from diffusion_rt.bench.shapes import tokenizers
from diffusion_rt.bench.shapes.captions import vocabulary
from diffusion_rt.bench.shapes.tokenizers import BOS, EOS, MAX_LENGTH

WIDTHS = (64, 128)  # of the two text encoders; cross attention sees both, side by side
POOLED = 128
TIME_IDS = 32  # sinusoids for each of the six micro-conditioning numbers
DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 3.0}

BETA_START, BETA_END = 0.00085, 0.012
SCHEDULER = {
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 16, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 128,
    "force_upcast": False,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 96, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": (2, 3, 4),  # diffusers' name for the number of heads
    "cross_attention_dim": sum(WIDTHS),
    "norm_num_groups": 16,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_IDS,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME_IDS,
}


def text_config(which: int) -> CLIPTextConfig:
    """The configuration of text encoder 1 or 2: their activations differ as SDXL's do."""
    ids = tokenizers.vocabulary_ids(tokenizers.merges(vocabulary()))
    width = WIDTHS[which - 1]
    return CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=POOLED,
        num_hidden_layers=4 if which == 1 else 3,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu" if which == 1 else "gelu",
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],  # never 2: transformers would pool by the largest id
        pad_token_id=ids[EOS] if which == 1 else ids["!"],
    )


def build_texts() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders, untrained; embeddings wide enough to tell words apart at once."""
    first, second = CLIPTextModel(text_config(1)), CLIPTextModelWithProjection(text_config(2))
    for name, parameter in [*first.named_parameters(), *second.named_parameters()]:
        if "token_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if "position_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return first, second


def build_vae(scaling_factor: float = 1.0) -> AutoencoderKL:
    """The VAE, untrained."""
    return AutoencoderKL(**VAE, scaling_factor=scaling_factor)


def build_unet() -> UNet2DConditionModel:
    """The UNet, untrained."""
    return UNet2DConditionModel(**UNET)


def build_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Write both tokenizers under `folder` and load them."""
    tokenizers.write(folder / "tokenizer", EOS)
    tokenizers.write(folder / "tokenizer_2", "!")
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
    )


def write(
    folder: Path,
    texts: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
) -> None:
    """Write the whole checkpoint in float16 safetensors; the models given stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = build_tokenizers(folder)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    kept = {id(p): p.data for m in (*texts, unet, vae) for p in m.parameters()}
    try:
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder, safe_serialization=True)
    finally:
        for module in (*texts, unet, vae):
            module.float()
            for parameter in module.parameters():
                parameter.data = kept.get(id(parameter), parameter.data)
    build_tokenizers(folder)  # CLIP's own files instead of the library's single one
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name / "tokenizer.json").unlink(missing_ok=True)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # what to load as: transformers would else stay in float16
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in folder.glob("*/*.safetensors"):
        path.chmod(0o644)
    text = json.dumps(DEFAULTS, indent=2) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")

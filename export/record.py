"""What a checkpoint's configs say, in the words of the manifest."""

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from diffusion_rt import __version__
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import (
    Defaults,
    ScheduleRecord,
    TextEncoderRecord,
    UnetRecord,
    VaeRecord,
)
from diffusion_rt.engines.typed_json import decode, encode
from diffusion_rt.export.checkpoint import MAX_JSON, SCHEDULER, TOKENIZERS, Checkpoint, Json

FACTOR = 8  # pixels per latent, each way
CLIPPING = ("clip_sample", "thresholding")  # of the denoised latent, in some schedulers
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")

R = TypeVar("R")


def schedule_record(checkpoint: Checkpoint) -> ScheduleRecord:
    """The noise schedule; what the config leaves out is the default of its scheduler's class."""
    import diffusers

    config = checkpoint.scheduler
    what = str(checkpoint.folder / SCHEDULER)
    name = config.get("_class_name")
    kind = None
    if isinstance(name, str) and name.endswith("Scheduler"):
        kind = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise BadInput(f"{what}: _class_name: got {shown(name)}, wants a scheduler of diffusers")
    parameters = inspect.signature(kind.__init__).parameters
    settings = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    settings |= config
    if "beta_start" not in parameters:
        raise BadInput(
            f"{what}: {name} has no betas; only models of a discrete noise schedule, "
            "such as EulerDiscreteScheduler's, can be exported so far"
        )
    for clipping in CLIPPING:
        if clipping in parameters and settings.get(clipping):
            raise BadInput(
                f"{what}: {clipping} is on, which no plan of steps can hold, as it is not linear; "
                f'set "{clipping}": false in it if the pictures may do without'
            )
    given = {
        field: settings[field]
        for field in ScheduleRecord.__dataclass_fields__
        if settings.get(field) is not None
    }
    fallback = {"timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False}
    return _checked(ScheduleRecord, {**fallback, **given, "scheduler": name}, what)


def text_encoder_records(checkpoint: Checkpoint) -> tuple[TextEncoderRecord, ...]:
    """Both text encoders, with the special tokens of their tokenizers."""
    records = []
    for name, tokenizer in TOKENIZERS.items():
        config = checkpoint.networks[name].config
        folder = checkpoint.folder / tokenizer
        settings = {
            **_json(folder / "special_tokens_map.json"),
            **_json(folder / "tokenizer_config.json"),
        }
        ids = _vocabulary(folder)
        positions = config.get("max_position_embeddings")
        length = settings.get("model_max_length", positions)
        if not isinstance(length, (int, float)) or not isinstance(positions, int):
            raise BadInput(f"{folder}: model_max_length: got {shown(length)}, wants a number")
        fields = {
            "graph": name,
            "tokenizer": tokenizer,
            "max_length": int(min(length, positions)),
            "layers": config.get("num_hidden_layers"),
            "width": config.get("hidden_size"),
            "pooled": name == "text_encoder_2",
            **{
                f"{role}_id": _token(settings, role, ids, folder)
                for role in ("bos_token", "eos_token", "pad_token")
            },
        }
        records.append(_checked(TextEncoderRecord, fields, str(folder)))
    return tuple(records)


def unet_record(checkpoint: Checkpoint) -> UnetRecord:
    """The UNet's levels."""
    config = checkpoint.networks["unet"].config
    what = "unet/config.json"
    channels, blocks = config.get("block_out_channels"), config.get("down_block_types")
    if not isinstance(channels, list) or not isinstance(blocks, list):
        raise BadInput(f"{what}: block_out_channels and down_block_types want a list")
    # The entry is called attention_head_dim for historical reasons, and holds the number of heads.
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    attends = ["CrossAttn" in str(block) for block in blocks]
    fields = {
        "in_channels": config.get("in_channels", 4),
        "channels": channels,
        "heads": [n if a else 0 for n, a in zip(heads, attends, strict=False)],
    }
    return _checked(UnetRecord, fields, what)


def vae_record(checkpoint: Checkpoint) -> VaeRecord:
    """The VAE's constants."""
    config = checkpoint.networks["vae"].config
    what = "vae/config.json"
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or 2 ** (len(channels) - 1) != FACTOR:
        raise BadInput(f"{what}: block_out_channels: wants 4 levels, for a factor of {FACTOR}")
    if config.get("latent_channels", 4) != checkpoint.networks["unet"].config.get("in_channels", 4):
        raise BadInput(f"{what}: latent_channels are not the UNet's in_channels")
    fields = {
        "channels": config.get("latent_channels", 4),
        "factor": FACTOR,
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "shift_factor": config.get("shift_factor") or 0.0,
        "latents_mean": config.get("latents_mean"),
        "latents_std": config.get("latents_std"),
        "force_upcast": config.get("force_upcast", True),
        "decoder_channels": channels,
    }
    return _checked(VaeRecord, fields, what)


def defaults(checkpoint: Checkpoint) -> Defaults:
    """Size, steps and guidance of a request that says nothing; diffusers' own but for the size."""
    size = checkpoint.networks["unet"].config.get("sample_size", 128)
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if type(height) is not int or type(width) is not int:
        raise BadInput(f"unet/config.json: sample_size: got {shown(size)}, wants a size")
    fields = {
        "width": width * FACTOR,
        "height": height * FACTOR,
        "steps": checkpoint.generation.get("num_inference_steps", 50),
        "guidance_scale": checkpoint.generation.get("guidance_scale", 5.0),
    }
    return _checked(Defaults, fields, str(checkpoint.folder))


def zeros_for_empty_prompt(checkpoint: Checkpoint) -> bool:
    """Whether no negative prompt means zero embeddings; diffusers' default is yes."""
    found = checkpoint.index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(found, bool):
        raise BadInput(f"force_zeros_for_empty_prompt: got {shown(found)}, wants true or false")
    return found


def exporter_versions() -> dict[str, str]:
    """What made the graphs."""
    return {"diffusion-rt": __version__, **{package: version(package) for package in PACKAGES}}


def _checked(kind: type[R], fields: Mapping[str, Any], what: str) -> R:
    try:
        found: R = decode(kind, encode(dict(fields)), "")
    except BadInput as wrong:
        raise BadInput(f"{what}: {wrong}") from None
    return found


def _json(path: Path) -> Json:
    if not path.exists():
        return {}
    found = strict_json.parse(read_bytes(path, MAX_JSON), str(path))
    if not isinstance(found, dict):
        raise BadInput(f"{path}: got {shown(found)}, wants an object")
    return found


def _vocabulary(folder: Path) -> Json:
    """Token -> id, from the files of either age."""
    if (folder / "vocab.json").exists():
        return {**_json(folder / "vocab.json"), **_json(folder / "added_tokens.json")}
    whole = _json(folder / "tokenizer.json")
    model, added = whole.get("model"), whole.get("added_tokens", [])
    ids = dict(model["vocab"]) if isinstance(model, dict) and "vocab" in model else {}
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            ids[token.get("content")] = token.get("id")
    return ids


def _token(settings: Json, role: str, ids: Json, folder: Path) -> int:
    token = settings.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    number = ids.get(text) if isinstance(text, str) else None
    if type(number) is not int:
        raise BadInput(f"{folder}: {role} {shown(text)} is not in the vocabulary")
    return number

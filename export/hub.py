"""A checkpoint by its name on the hub: downloaded into the hub's own cache, never with pickles."""

import re
from pathlib import Path

from diffusion_rt.engines.errors import BadInput

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PATTERNS = (
    "model_index.json",
    "generation_config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*",
    "tokenizer_2/*",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "unet/config.json",
    "vae/config.json",
)
FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")


def is_hub_name(text: str) -> bool:
    """Whether `text` can be a name on the hub: `owner/model`, where no such folder stands."""
    return NAME.fullmatch(text) is not None and not Path(text).exists()


def download(name: str, *, variant: str | None = None) -> Path:
    """The folder of a snapshot in the hub's cache, complete; what is there is not fetched again.

    The files are those that export reads. Without `variant` the fp16 weights are taken where the
    model has them, which are half the download. HF_HUB_OFFLINE and the other variables of
    huggingface-hub are honoured. Raises BadInput where there is no such model or no way to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*PATTERNS, *_indices()]))
        words = (variant,) if variant else ("fp16", None)
        for word in words:
            folder = Path(snapshot_download(name, allow_patterns=_weights(word)))
            if all(_has(folder / part, word) for part in FOLDERS):
                return folder
    except GatedRepoError:
        raise BadInput(
            f"{name} asks you to accept its terms: do so on its page, then run hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise BadInput(
            f"{name}: no such folder here and no such model on the hub (or a private one: "
            "hf auth login)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise BadInput(
            f"{name}: no such folder here, not in the hub's cache, and the hub cannot be reached; "
            "check the connection and HF_HUB_OFFLINE"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{name}: the download failed: {reason}; run it again to resume") from None
    wanted = f"of variant {variant} " if variant else ""
    raise BadInput(f"{name}: no weights {wanted}in safetensors and diffusers layout on the hub")


def _stems(part: str) -> str:
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def _indices() -> list[str]:
    return [f"{part}/{_stems(part)}.safetensors.index*.json" for part in FOLDERS]


def _weights(variant: str | None) -> list[str]:
    """Patterns of one variant's weights: one file, or shards as either age names them."""
    patterns = []
    for part in FOLDERS:
        stem = f"{part}/{_stems(part)}"
        if variant:
            patterns += [f"{stem}.{variant}.safetensors", f"{stem}.{variant}-*.safetensors"]
            patterns += [f"{stem}-*.{variant}.safetensors"]
        else:
            patterns += [f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors"]
    return patterns


def _has(folder: Path, variant: str | None) -> bool:
    tag = f".{variant}" if variant else ""
    stem = _stems(folder.name)
    names = (f"{stem}{tag}.safetensors", f"{stem}.safetensors.index{tag}.json")
    return any((folder / name).exists() for name in names)

"""What is measured: a model of ours, or a checkpoint that diffusers draws and we do not yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import NAME
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.export.checkpoint import INDEX, MAX_JSON, OTHER_FAMILIES, SCHEDULER
from diffusion_rt.runtime.pipeline import SHIPPED

# Pipelines that only diffusers draws with: the steps and guidance scale that it takes by itself.
THEIRS = {
    "StableDiffusionPipeline": (50, 7.5),
    "StableDiffusionXLImg2ImgPipeline": (50, 5.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A folder, what a case of it is where nothing is said, and whether we can draw with it."""

    path: Path
    name: str
    folder: ModelFolder | None  # None where `absent` says why we cannot
    absent: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str  # the class of diffusers


def open_subject(path: Path | None) -> Subject:
    """A model folder, the shipped one where `path` is None, or a checkpoint of another family.

    Raises BadInput for what is neither.
    """
    if path is not None and not (path / NAME).exists() and (path / INDEX).exists():
        kind = _read(path / INDEX).get("_class_name")
        if kind in THEIRS:
            return _theirs(path, str(kind))
    folder = open_model(path or SHIPPED)
    defaults = folder.manifest.defaults
    return Subject(
        path=folder.path,
        name=folder.manifest.name,
        folder=folder,
        absent=None,
        width=defaults.width,
        height=defaults.height,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        scheduler=folder.manifest.schedule.scheduler,
    )


def _theirs(path: Path, kind: str) -> Subject:
    path = path.resolve()
    scheduler = _read(path / SCHEDULER).get("_class_name")
    side = _read(path / "unet" / "config.json").get("sample_size")
    if not isinstance(scheduler, str) or type(side) is not int or not 1 <= side <= 1024:
        raise BadInput(f"{path}: its scheduler or the size of its UNet is not said; save it anew")
    steps, scale = THEIRS[kind]
    return Subject(
        path=path,
        name=path.name or "checkpoint",
        folder=None,
        absent=f"not supported yet: {OTHER_FAMILIES[kind]}",
        width=8 * side,
        height=8 * side,
        steps=steps,
        guidance_scale=scale,
        scheduler=scheduler,
    )


def _read(path: Path) -> dict[str, Any]:
    found = strict_json.parse(read_bytes(path, MAX_JSON), str(path))
    if not isinstance(found, dict):
        raise BadInput(f"{path}: no object; save the checkpoint anew")
    return found

"""Where the plans of a model lie: in its own folder, or in the user's cache."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffusion_rt.engines.cache_folder import cache_folder, cache_path
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.kept import own_folder
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.options import Compatibility
from diffusion_rt.engines.trt.plan_file import is_ours, plan_path, trust_plan


def target_name(machine: Machine, compatibility: Compatibility) -> str:
    """The folder's name for plans that run where this machine's do.

    Plans for several GPUs lie side by side, such as `sm_90-nvidia-h200`, `sm_90` (all of that
    compute capability) and `ampere+`.
    """
    if compatibility == "ampere+":
        return "ampere+"
    if compatibility == "same":
        return f"sm_{machine.arch}"
    name = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return f"sm_{machine.arch}-{name[:60] or 'gpu'}"


def folder_to_build(model: ModelFolder, machine: Machine, compatibility: Compatibility) -> Path:
    """The folder for new plans, made if need be.

    It is `engines/trt/…` of the model, or of the same name under the cache, keyed by the manifest,
    where the model's folder cannot be written. Raises BadInput where neither can.
    """
    name = target_name(machine, compatibility)
    own = own_folder(model, f"trt/{name}")
    if own is not None:
        return own
    folder = _cached(model) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folders_to_load(model: ModelFolder, machine: Machine) -> list[list[Path]]:
    """Folders that may hold plans for a machine, by kind, the most specific kind first.

    Only those there are. What lies in them is held against the machine by
    `plan_file.check_usable`.
    """
    kinds: tuple[Compatibility, ...] = ("none", "same", "ampere+")
    found = [folders_of_kind(model, machine, compatibility) for compatibility in kinds]
    return [folders for folders in found if folders]


def folders_of_kind(
    model: ModelFolder, machine: Machine, compatibility: Compatibility
) -> list[Path]:
    """Folders there are for plans of one kind: in the model's own folder, or the cache, or both."""
    name = target_name(machine, compatibility)
    return [place / name for place in _places(model) if (place / name).is_dir()]


def latest_first(folders: Sequence[Path], graph: str) -> list[Path]:
    """Folders in the order in which a plan of a graph is looked for in them: the last written."""
    return sorted(folders, key=lambda folder: _written(folder, graph), reverse=True)


def _written(folder: Path, graph: str) -> int:
    try:
        return plan_path(folder, graph).stat().st_mtime_ns
    except OSError:
        return 0


def has_plans(model: ModelFolder) -> bool:
    """Whether a UNet's plan of this user's lies anywhere for this model, for whatever machine."""
    folders = [f for f in folders_of(model) if (f / "unet_step.plan").exists()]
    return any(is_ours(folder, "unet_step") for folder in folders)


def trust_plans(model: ModelFolder) -> list[Path]:
    """Trust every plan of this model, whoever built it; those that were not trusted before.

    Raises BadInput where that cannot be noted.
    """
    return [
        plan_path(folder, graph)
        for folder in folders_of(model)
        for graph in model.manifest.graphs
        if trust_plan(folder, graph)
    ]


def folders_of(model: ModelFolder) -> list[Path]:
    """Every folder of plans for this model, for whatever machine; none where none can be read."""
    folders = []
    for place in _places(model):
        with suppress(OSError):  # not there, or somebody else's
            folders += [folder for folder in sorted(place.iterdir()) if folder.is_dir()]
    return folders


def _places(model: ModelFolder) -> list[Path]:
    places = [model.path / "engines" / "trt"]
    with suppress(BadInput, OSError):  # no cache, or one that cannot be trusted; build says so
        if cache_path("trt").is_dir():
            places.append(_cached(model))
    return places


def _cached(model: ModelFolder) -> Path:
    return cache_folder("trt") / model.sha256[:32]

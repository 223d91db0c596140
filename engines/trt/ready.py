"""Whether TensorRT can be tried here, told without importing it."""

import shlex

from diffusion_rt.engines.device.ready import installed, kernels_missing
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.again import build_command
from diffusion_rt.engines.trt.library import INSTALL
from diffusion_rt.engines.trt.places import folders_of, has_plans


def missing(model: ModelFolder | None) -> str | None:
    """What is missing, with the fix; None where nothing is that can be seen from here."""
    if not installed("tensorrt"):
        return f"tensorrt is not installed; {INSTALL}"
    if lacking := kernels_missing("trt"):
        return lacking
    if model is None or has_plans(model):
        return None
    if built(model):
        look = shlex.join(["diffusion-rt", "doctor", "--model", str(model.path)])
        return (
            f"the engines of {model.manifest.name} are damaged, or built by somebody else; {look} "
            f"says which, --trust runs the latter, this builds them anew: {build_command(model)}"
        )
    return f"no engine is built for {model.manifest.name}; run: {build_command(model)}"


def built(model: ModelFolder) -> bool:
    """Whether engines of a model lie anywhere, usable or not."""
    return any((folder / "unet_step.plan").exists() for folder in folders_of(model))

"""Whether TensorRT can be tried here, told without importing it."""

import importlib.util

from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.again import build_command
from diffusion_rt.engines.trt.library import INSTALL
from diffusion_rt.engines.trt.places import has_plans


def missing(model: ModelFolder | None) -> str | None:
    """What is missing, with the fix; None where nothing is that can be seen from here."""
    for package, install in (
        ("tensorrt", INSTALL),
        ("cuda.bindings", "pip install 'diffusion-rt[gpu]'"),
    ):
        if not _installed(package):
            return f"{package.split('.')[0]} is not installed; {install}"
    if model is not None and not has_plans(model):
        return f"no engine is built for {model.manifest.name}; run: {build_command(model)}"
    return None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent package that is not there, or was taken out
        return False

"""Stable Diffusion inference: ONNX export, engines built from it, and a runtime without PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_rt.engines.errors import BadInput, Fault
    from diffusion_rt.runtime.pipeline import Pipeline
    from diffusion_rt.runtime.request import Request

__version__ = "0.1.0"
__all__ = ["BadInput", "Fault", "Pipeline", "Request", "__version__"]

_HOME = {
    "BadInput": "diffusion_rt.engines.errors",
    "Fault": "diffusion_rt.engines.errors",
    "Pipeline": "diffusion_rt.runtime.pipeline",
    "Request": "diffusion_rt.runtime.request",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

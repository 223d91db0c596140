"""Whether kernels can be launched here, told without opening the GPU."""

import importlib.util

from diffusion_rt.engines.cache_folder import cache_path
from diffusion_rt.kernels.compile import CompileError, find_compiler


def kernels_missing(extra: str) -> str | None:
    """What is missing, with the fix, for an engine that `extra` of this package installs.

    None where the driver's bindings are there, and kernels or a compiler for them. Which kernels
    are wanted shows only when a model is opened; what is missing then is said there.
    """
    if not installed("cuda.bindings"):
        return f"cuda-bindings is not installed; pip install 'diffusion-rt[{extra}]'"
    folder = cache_path("kernels")
    if folder.is_dir() and any(folder.iterdir()):
        return None
    try:
        find_compiler()
    except CompileError as error:
        return f"its kernels are compiled on first use, and here is {error}"
    return None


def installed(module: str) -> bool:
    """Whether a module can be found; it is not imported, the packages around it are."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is not there, or was taken out
        return False

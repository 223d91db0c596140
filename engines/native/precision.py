"""In which arithmetic a graph runs."""

from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.plan import Arithmetic
from diffusion_rt.engines.spec import Precision


def arithmetic(
    folder: ModelFolder, graph: str, asked: Precision | None, usual: Precision
) -> Arithmetic:
    """The arithmetic of a graph: what is asked for, else the usual.

    A VAE that overflows in float16 (the manifest says so) takes bfloat16 instead.
    """
    precision = asked or usual
    if asked is None and precision == "float16" and graph.startswith("vae_"):
        return "bfloat16" if folder.manifest.vae.force_upcast else "float16"
    return precision

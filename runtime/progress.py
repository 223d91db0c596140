"""Progress bars of what draws a picture."""

from contextlib import AbstractContextManager

from diffusion_rt import bars
from diffusion_rt.bars import Progress

STAGES = {
    "compile": "compiling kernels",
    "text": "reading the prompt",
    "denoise": "denoising",
    "decode": "decoding",
    "verify": "hashing",
}


def progress_bars(*, quiet: bool = False) -> AbstractContextManager[Progress]:
    """A `progress(stage, done, total)` for Pipeline.open and generate; see `bars.progress_bars`."""
    return bars.progress_bars(STAGES, quiet=quiet)

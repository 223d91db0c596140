"""A part of the GPU run: every kernel compiled for this chip, on all cores."""

import time

from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import CompileError, find_compiler

FEW = 2  # of all, on a simulator


def compile_all(sink: Sink) -> None:
    """Fill the cache that the other parts read, as an engine does when it is opened."""
    try:
        find_compiler()
    except CompileError as error:
        sink.not_run("compile", str(error))
        return
    arch = sink.chip.arch
    # Those of one chip alone have a suffix.
    chosen = [v for v in CATALOGUE.values() if arch in v.archs or not v.suffix]
    if sink.chip.simulated:
        chosen = chosen[:FEW]
    setting = {"kernels": len(chosen), "arch": arch}
    begun = time.perf_counter()
    try:
        ImageCache(cache_folder("kernels")).fill((variant, arch) for variant in chosen)
    except CompileError as error:
        sink.failed("compile", str(error), setting)
        return
    seconds = time.perf_counter() - begun
    sink.checked("compile", 0.0, setting)
    sink.timed("compile", [seconds], setting, note="all kernels, on all cores")

"""A part of the GPU run: every kernel compiled for this chip, on all cores."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.compile import CompileError, find_compiler

FEW = 2  # of all, on a simulator


def compile_all(sink: Sink) -> None:
    """Fill the cache that the other parts read, in as many processes as there are cores."""
    try:
        find_compiler()
    except CompileError as error:
        sink.not_run("compile", str(error))
        return
    arch = sink.chip.arch
    chosen = [variant for variant in CATALOGUE.values() if _runs(variant, arch)]
    if sink.chip.simulated:
        chosen = chosen[:FEW]
    folder = cache_folder("kernels")
    begun = time.perf_counter()
    failed = 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for name, why in pool.map(
            _image,
            [variant.name for variant in chosen],
            [folder] * len(chosen),
            [arch] * len(chosen),
        ):
            if why:
                failed += 1
                sink.failed("compile", f"{name}: {why}", {"kernel": name})
    seconds = time.perf_counter() - begun
    if not failed:
        setting = {"kernels": len(chosen), "arch": arch}
        sink.checked("compile", 0.0, setting)
        sink.timed("compile", [seconds], setting, note="all kernels, on all cores")


def _runs(variant: Variant, arch: int) -> bool:
    """Whether a chip takes the kernel: those of one chip alone have a suffix."""
    return arch in variant.archs or not variant.suffix


def _image(name: str, folder: Path, arch: int) -> tuple[str, str]:
    """In another process: compile one kernel; its name, and what went wrong if anything."""
    try:
        ImageCache(folder).image(CATALOGUE[name], arch)
    except CompileError as error:
        return name, str(error)
    return name, ""

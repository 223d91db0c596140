"""Parts of the GPU run: full-size SDXL of generated weights, by each of our engines."""

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from diffusion_rt.bench.gpu_against import told
from diffusion_rt.bench.gpu_bench import Array
from diffusion_rt.bench.gpu_drawing import Drawer, Drawing, evaluate
from diffusion_rt.bench.gpu_part import importable
from diffusion_rt.bench.gpu_prepare import CHECKED, model_of, side_of, truths
from diffusion_rt.bench.gpu_rows import Setting, Sink, excess
from diffusion_rt.engines.artefact import writing
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.tactics import read_measured
from diffusion_rt.engines.native.ways import Way, Ways
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.kernels.cache import Progress
from diffusion_rt.kernels.catalogue import SOURCES, Variant
from diffusion_rt.kernels.compile import host_library
from diffusion_rt.kernels.driver.simulator import Simulator

LIBRARIES = ("nvmath", "cudnn")  # what a build can measure beside our kernels
BUILT = ("native", "--no-overlap")  # the engine and its flags, of the build that measures our own
TACTICS = "tactics.json"  # what a build has measured, in the folder of records
REMAIN = 30  # seconds that a build of tactics leaves for what comes after it


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is drawn."""

    side: int  # of the picture that is timed, in pixels
    steps: int
    repeats: int


FULL, TINY = Extent(1024, 30, 3), Extent(32, 2, 1)


class HostImages:
    """Kernels compiled for the host, kept in the user's cache folder from one part to the next."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        """A host library; one for each content of the sources."""
        content = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
        digest = hashlib.sha256(repr(variant).encode() + content).hexdigest()[:16]
        path = cache_folder("simulator") / f"{variant.name}-{digest}"
        if not path.exists():
            path.write_bytes(host_library([variant]))
        return path.read_bytes()

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        """Each is made when it is loaded."""


def native(sink: Sink) -> None:
    """One evaluation and one decoded picture against the host; then a step, a decode, a picture.

    These are timed before and after the ways to run each operation were measured, then with
    NVIDIA's libraries where they are, and with launches that overlap.
    """
    folder = model_of(sink, "native")
    if folder is None:
        return
    extent = TINY if sink.chip.simulated else FULL
    gpu = _gpu(sink)
    backend = open_native(folder, gpu=gpu)
    allowed = _check(sink, folder, backend, "unet")
    _check(sink, folder, backend, "vae_decoder")
    if not sink.chip.simulated:
        _check_whole(sink, folder, gpu, allowed)
    gpu.close()
    _time(sink, folder, "native, ways not measured", extent, open_native)
    if sink.chip.simulated:
        return
    if sink.deadline - time.time() < REMAIN:
        sink.not_run("native", "out of time before its ways were measured")
        return
    if not _build(sink, folder, extent, *BUILT):
        return
    keep_tactics(sink)
    ours = partial(open_native, libraries=False, overlap=False)
    one = _time(sink, folder, "native", extent, ours)
    if all(map(importable, LIBRARIES)) and _build(sink, folder, extent, *BUILT, "--libraries"):
        _time(sink, folder, "native, libraries", extent, partial(open_native, overlap=False))
    if sink.deadline - time.time() < REMAIN / 2:
        sink.not_run("native, launches overlap", "out of time")
        return
    # Last: where such a launch hangs, the rest is there.
    opened = partial(open_native, libraries=False, overlap=True)
    other = _time(sink, folder, "native, launches overlap", extent, opened)
    if one is not None and other is not None:
        same = one.latents.tobytes() == other.latents.tobytes()
        setting = _setting(folder, extent, "native, launches overlap")
        sink.checked("overlap", 0.0 if same else math.inf, setting)


def tensorrt(sink: Sink) -> None:
    """The same by TensorRT, its engines built first."""
    folder = model_of(sink, "tensorrt")
    if folder is None:
        return
    if sink.chip.simulated:
        sink.not_run("tensorrt", "on a simulator it is the test suite itself")
        return
    from diffusion_rt.engines.trt.backend import open_trt

    if _build(sink, folder, FULL, "trt"):
        _time(sink, folder, "trt", FULL, open_trt)


def first(sink: Sink) -> None:
    """A picture in a fresh process, which this one is; kernels are compiled and ways measured."""
    folder = model_of(sink, "first-picture")
    if folder is None:
        return
    extent = TINY if sink.chip.simulated else FULL
    drawer = Drawer(folder, open_native(folder, gpu=_gpu(sink)))
    drawn = drawer.draw(extent.side, extent.side, extent.steps, 7)
    since = _age()
    setting = {**_setting(folder, extent, "native"), "steps": extent.steps}
    if drawn.pixels.std() > 1:
        sink.timed("first-picture", [since], setting, note="process start to pixels")
    else:
        sink.failed("first-picture", "the picture is a plane", setting)
    drawer.close()


def _check(sink: Sink, folder: ModelFolder, backend: Backend, name: str) -> float:
    """What the device makes in half precision against the host's float32; the error allowed.

    That is twice what rounding at the same places costs the host. It is told as a share of the
    result: root of the mean square over that of the truth.
    """
    side = side_of(sink)
    truth, plain = truths(sink, folder, name)
    found = CHECKED[name](folder, backend.load, side)
    setting: Setting = {"model": folder.manifest.name, "latents": f"{side}x{side}", "rows": 2}
    error = excess(found, plain.astype(np.float16), truth.astype(np.float64))
    sink.checked(name, error, setting)
    return 2 * _share(plain - truth, truth)


def _check_whole(sink: Sink, folder: ModelFolder, gpu: Gpu, allowed: float) -> None:
    """A prediction at full size: the ways of this very chip against those of any.

    They add in another order and round alike, so both are as far from the truth as `allowed` says,
    which was found at a smaller size; together they may be twice as far from each other.
    """
    side = FULL.side // folder.manifest.vae.factor
    own, portable = (
        evaluate(open_native(folder, gpu=gpu, choose=choose).load, side)
        for choose in (None, any_chip)
    )
    size = f"{FULL.side}x{FULL.side}"
    setting: Setting = {"model": folder.manifest.name, "size": size, "rows": 2, "against": "mma"}
    sink.checked("unet, whole", _share(own - portable, portable) / (2 * allowed), setting)


def any_chip(found: Ways) -> Way:
    """The likely fastest of the ways that are not for one chip alone."""
    portable = (way for way in found.ways if not any(one.suffix for one in way.variants))
    return next(portable, found.ways[0])


def _share(difference: Array, of: Array) -> float:
    """Root mean squares; infinite where something is not finite."""
    share = float(np.sqrt(np.mean(difference.astype(np.float64) ** 2) / np.mean(of * of)))
    return share if math.isfinite(share) else math.inf


def _time(
    sink: Sink,
    folder: ModelFolder,
    engine: str,
    extent: Extent,
    opened: Callable[..., Backend],
) -> Drawing | None:
    """A picture several times, and the stages of it; the first of them, where all are right."""
    gpu = _gpu(sink)
    begun = time.perf_counter()
    drawer = Drawer(folder, opened(folder, gpu=gpu))
    first = drawer.draw(extent.side, extent.side, 1, 0)
    load = time.perf_counter() - begun
    setting = _setting(folder, extent, engine)
    if not _fine(sink, first, setting):
        return None
    drawn = [drawer.draw(extent.side, extent.side, extent.steps, n) for n in range(extent.repeats)]
    if not all(_fine(sink, one, setting) for one in drawn):
        return None
    memory = gpu.device.memory()
    used = memory.total - memory.free
    flop, nbytes = _work(folder, extent)
    steps = [gap for one in drawn for gap in one.steps]
    step = sink.timed(
        "step", steps, {**setting, "rows": 2}, flop=flop, nbytes=nbytes, peak_device=used
    )
    if not sink.chip.simulated:
        sink.say("step", "timed", f"{engine}: {1 / step:.1f} steps a second with guidance")
    for name in ("decode", "text", "picture"):
        times = [one.seconds[name] for one in drawn]
        more: Setting = {"steps": extent.steps} if name == "picture" else {}
        sink.timed(name, times, {**setting, **more}, peak_device=used)
    sink.timed("load", [load], setting, note="opened, compiled, loaded, captured, one step drawn")
    drawer.close()
    gpu.close()
    return drawn[0]


def _fine(sink: Sink, drawn: Drawing, setting: Setting) -> bool:
    """Whether a picture is finite and no plane; a row where it is not."""
    latents, pixels = drawn.latents, drawn.pixels
    if np.isfinite(latents).all() and latents.std() > 1e-3 and pixels.std() > 1:
        return True
    sink.failed("picture", "latents or pixels are flat or not finite", setting)
    return False


def _work(folder: ModelFolder, extent: Extent) -> tuple[int, int]:
    """Operations that are done and bytes of one evaluation, by the native engine's plan."""
    side = extent.side // folder.manifest.vae.factor
    tokens = max(encoder.max_length for encoder in folder.manifest.text_encoders)
    sizes = {"batch": 2, "height": side, "width": side, "tokens": tokens}
    plan = plan_of(folder, "unet_step", sizes, "float16")
    flop = sum(operation.flops_done for operation in plan.operations)
    return flop, sum(plan.bytes_moved(operation) for operation in plan.operations)


def _build(sink: Sink, folder: ModelFolder, extent: Extent, engine: str, *flags: str) -> bool:
    """Build the engines for one size; whether that came to its end."""
    command = [sys.executable, "-m", "diffusion_rt", "build", str(folder.path), "--engine", engine]
    command += ["--buckets", f"{extent.side}x{extent.side}", *flags]
    begun = time.perf_counter()
    try:
        told(replace(sink, deadline=sink.deadline - REMAIN), command)
    except RuntimeError as error:
        sink.not_run(f"build {engine}", str(error))
        return False
    seconds = time.perf_counter() - begun
    sink.timed("build", [seconds], _setting(folder, extent, ", ".join([engine, *flags])))
    return True


def keep_tactics(sink: Sink) -> None:
    """Leave the tactics that a build has measured beside the records, to be shipped from there."""
    found = []
    for path in cache_folder("tactics").glob("tactics-*.json"):
        with suppress(BadInput):  # of another version, or damaged
            if not read_measured(path)[0].libraries:
                found.append(path)
    if sink.output is not None and found:
        newest = max(found, key=lambda path: path.stat().st_mtime)
        with writing(sink.output / TACTICS) as file:
            file.write(newest.read_bytes())
        _, known = read_measured(newest)
        sink.say("tactics", "noted", f"of {len(known)} sizes, in {TACTICS}", shown=False)


def _setting(folder: ModelFolder, extent: Extent, engine: str) -> dict[str, str | int | float]:
    size = f"{extent.side}x{extent.side}"
    return {"model": folder.manifest.name, "size": size, "engine": engine}


def _gpu(sink: Sink) -> Gpu:
    return Gpu(Simulator(arch=80), HostImages()) if sink.chip.simulated else open_gpu()


def _age() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started

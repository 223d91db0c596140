"""What the engines of a GPU need beside its driver: CUDA Python, a compiler, TensorRT, plans.

Nothing of it is imported here: TensorRT is tried in a process of its own, since a library that does
not fit may end the process.
"""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_rt.engines.cache_folder import cache_path
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.again import build_command
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.library import OLDEST
from diffusion_rt.engines.trt.library import version_of as numbers_of
from diffusion_rt.engines.trt.places import folders_of, latest_first
from diffusion_rt.engines.trt.plan_file import (
    NotOurs,
    PlanHeader,
    check_usable,
    plan_path,
    read_header,
)
from diffusion_rt.runtime.finding import Check, Finding, size, version_of
from diffusion_rt.runtime.nvidia import ask_driver

TIMEOUT_SECONDS = 60.0
BINDINGS = (
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-cu13-bindings",
    "tensorrt-cu12-bindings",
)
INSTALL = "pip install 'diffusion-rt[native]'"  # the extra trt holds it too
COMPILERS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13")
ASK = "import tensorrt; print(tensorrt.__version__)"


def cuda_python() -> list[Finding]:
    """The bindings of the driver, which the engines trt and native call."""
    have = [f"{n} {v}" for n in ("cuda-python", "cuda-bindings") if (v := version_of(n))]
    if have:
        return [Finding("ok", "CUDA Python", ", ".join(have))]
    fix = f"for --engine trt and native: {INSTALL}"
    return [Finding("absent", "CUDA Python", "not installed", fix)]


def kernel_compiler() -> list[Finding]:
    """What compiles our kernels when they are first wanted."""
    have = [f"{name} {version}" for name in COMPILERS if (version := version_of(name))]
    if nvcc := shutil.which("nvcc"):
        have.append(nvcc)
    if have:
        return [Finding("ok", "CUDA compiler", ", ".join(have))]
    found = "none; kernels that are not in the cache yet cannot be made"
    fix = f"for --engine trt and native: {INSTALL}"
    return [Finding("absent", "CUDA compiler", found, fix)]


def kernel_cache() -> list[Finding]:
    """Compiled kernels: they are run, so nobody else may write there."""
    fix = "make it a folder of yours, or set XDG_CACHE_HOME"
    try:
        folder = cache_path("kernels")
        there = folder.is_dir()
    except (BadInput, OSError) as error:
        return [Finding("absent", "kernel cache", f"cannot be used: {error}", fix)]
    if not there:
        return [Finding("ok", "kernel cache", f"{folder}, made when needed")]
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        found = f"{folder} can be written by others; kernels from there are not run"
        return [Finding("absent", "kernel cache", found, f"chmod go-w {shlex.quote(str(folder))}")]
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [Finding("absent", "kernel cache", f"{folder} cannot be read and written", fix)]
    kept = [path for path in folder.iterdir() if not path.name.startswith(".")]  # no locks
    files = [path.stat().st_size for path in kept if path.is_file()]
    return [Finding("ok", "kernel cache", f"{folder}, kernels: {len(files)}, {size(sum(files))}")]


def tensorrt() -> list[Finding]:
    """TensorRT's Python bindings, and the libraries behind them: either may be there alone."""
    have = [f"{name} {version}" for name in BINDINGS if (version := version_of(name))]
    install = "for --engine trt: pip install 'diffusion-rt[trt]'"
    if not have:
        return [Finding("absent", "TensorRT bindings", "not installed", install)]
    bindings = Finding("ok", "TensorRT bindings", ", ".join(have))
    version, trouble = _try_tensorrt()
    if version is None:
        fix = f"{install}; its libraries come from NVIDIA's index, or put them on LD_LIBRARY_PATH"
        return [bindings, Finding("absent", "TensorRT libraries", trouble, fix)]
    if numbers_of(version) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        found = f"{version}, {wanted} or newer is wanted"
        return [bindings, Finding("absent", "TensorRT libraries", found, install)]
    return [bindings, Finding("ok", "TensorRT libraries", f"{version}, loads")]


def plans(folder: Path) -> list[Finding]:
    """The model in a folder, and the TensorRT engines that were built for it."""
    try:
        model = open_model(folder)
    except BadInput as error:
        fix = "give a folder that diffusion-rt export made"
        return [Finding("absent", "model", str(error), fix)]
    count = len(model.manifest.files)
    findings = [Finding("ok", "model", f"{model.manifest.name}, {count} files as they were made")]
    places = folders_of(model)
    if not places:
        fix = f"for --engine trt: {build_command(model)}"
        findings.append(Finding("absent", "engines", "none built", fix))
    machine = this_machine() if places else None
    for kind in dict.fromkeys(place.name for place in places):
        findings += _plans_in([place for place in places if place.name == kind], model, machine)
    return findings


def this_machine() -> Machine | None:
    """The first GPU, its driver and TensorRT, as plans know them; None where one is missing."""
    driver = ask_driver()
    if driver is None or driver.cuda is None or not driver.devices:
        return None
    version, _ = _try_tensorrt()
    if version is None:
        return None
    device = driver.devices[0]
    return Machine(
        gpu=device.name.strip(),
        arch=10 * device.capability[0] + device.capability[1],
        driver=".".join(map(str, driver.cuda)),
        tensorrt=version,
    )


def _plans_in(places: list[Path], model: ModelFolder, machine: Machine | None) -> list[Finding]:
    """One line for the plans of one kind of GPU, and one for each reason why some cannot be used.

    They lie in the model's folder, the cache, or both. Where there is no such machine here, they
    are held against the one that they were built on.
    """
    headers: dict[str, PlanHeader] = {}
    wrong: dict[str, list[BadInput]] = {}
    lacking = []
    for graph in model.manifest.graphs:
        there = [p for p in latest_first(places, graph) if os.path.lexists(plan_path(p, graph))]
        if not there:
            lacking.append(graph)
        for place in there:
            path = plan_path(place, graph)
            try:
                header = read_header(place, graph)
                if header is None:  # gone since
                    continue
                check_usable(header, path, model, machine or header.key.machine)
                read_header(place, graph, ours=True)
            except BadInput as error:
                wrong.setdefault(str(error).replace(str(path), ""), []).append(error)
                continue
            headers[graph] = header
            break
    findings = [_unusable(errors, model) for errors in wrong.values()]
    if headers:
        findings.insert(0, Finding("ok", f"engines {places[0].name}", _summary(headers)))
        unfinished = [f"none of {', '.join(lacking)}"] if lacking else []
        unfinished += _sizes_lacking(headers)
        if unfinished:
            found = f"{places[0].name}: {'; '.join(unfinished)}"
            findings.append(Finding("absent", "engines", found, build_command(model, headers)))
    return findings


def _sizes_lacking(headers: Mapping[str, PlanHeader]) -> list[str]:
    """Sizes of the UNet that the VAE lacks, as a build that ended early leaves it."""
    step = headers.get("unet_step")
    wanted = [profile.name for profile in step.key.profiles] if step else []
    found = []
    for graph in ("vae_decoder", "vae_encoder"):
        if graph in headers:
            have = {profile.name for profile in headers[graph].key.profiles}
            if lost := [name for name in wanted if name not in have]:
                found.append(f"{graph} is not built for {_some(lost)}, as unet_step is")
    return found


def _unusable(errors: Sequence[BadInput], model: ModelFolder) -> Finding:
    """What is to be said of plans that all have the same fault."""
    first, more, fix = errors[0], len(errors) - 1, build_command(model)
    if isinstance(first, NotOurs):
        fix = f"where you trust its builder: diffusion-rt generate --trust; else {fix}"
    return Finding("absent", "engines", f"{first} (and {more} more)" if more else str(first), fix)


def _summary(headers: dict[str, PlanHeader]) -> str:
    machines = sorted({f"for {h.key.machine.gpu}" for h in headers.values()})
    machines += sorted({f"TensorRT {h.key.machine.tensorrt}" for h in headers.values()})
    words = [f"{len(headers)} plans", size(sum(h.plan_bytes for h in headers.values())), *machines]
    step = headers.get("unet_step")
    if step is not None:
        names = [profile.name for profile in step.key.profiles]
        words += [step.key.edits.arithmetic, _some(names)]
    return ", ".join(words)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _try_tensorrt() -> tuple[str | None, str]:
    """The version that imports, or None and why it does not."""
    command = [sys.executable, "-P", "-c", ASK]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"importing tensorrt took over {TIMEOUT_SECONDS:g} s"
    if done.returncode == 0:
        return done.stdout.strip(), ""
    lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return None, f"cannot be loaded: {lines[-1]}"


CHECKS: Sequence[Check] = (cuda_python, kernel_compiler, kernel_cache, tensorrt)

"""What this machine has, what it lacks, and what to type about it.

A check is a function that returns findings. A finding that keeps pictures from being drawn is
wrong (✗), one that only an optional part needs is absent (–). Neither torch nor CUDA is imported.
"""

import importlib
import os
import platform
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from diffusion_rt import __version__
from diffusion_rt.command import plain
from diffusion_rt.engines.cache_folder import user_cache
from diffusion_rt.engines.device.needs import LEAST_ARCH, LEAST_CUDA
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.ort.library import import_library
from diffusion_rt.runtime import doctor_gpu, doctor_hub
from diffusion_rt.runtime.finding import Check, Finding, size, version_of
from diffusion_rt.runtime.memory import available
from diffusion_rt.runtime.nvidia import Device, ask_driver

CORE = {
    "numpy": "numpy",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "pillow": "PIL",
    "rich": "rich",
}
EXPORT = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "huggingface-hub",
)
RUNTIMES = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu"}  # distribution -> our extra
LITTLE_MEMORY = 400 << 20  # what `generate` takes with the shipped model, about
LITTLE_DISK = 100 << 20
CUBINS = (13, 0)  # CUDA of drivers that take our kernels compiled
MARKS = {"ok": "✓", "absent": "–", "wrong": "✗"}
SHIPPED = Path(__file__).parent / "models" / "shapes-xl"


def examine(
    checks: Sequence[Check] | None = None, *, online: bool = False, model: Path | None = None
) -> list[Finding]:
    """Run the checks, all by default; one that breaks is itself a finding.

    Nothing is sent over the network unless `online`. `model` is a folder whose engines are looked
    at too.
    """
    findings: list[Finding] = []
    wanted = list(CHECKS if checks is None else checks)
    if model is not None:
        folder = model

        def engines() -> Sequence[Finding]:
            return doctor_gpu.plans(folder)

        wanted.append(engines)
    if online:
        wanted.append(doctor_hub.hub_online)
    for check in wanted:
        try:
            findings += check()
        except Exception as error:  # a report with a hole in it beats none
            name = check.__name__.replace("_", " ")
            text = f"cannot be checked: {type(error).__name__}: {error}"
            findings.append(Finding("wrong", name, text, "report this as a bug of diffusion-rt"))
    return findings


def python() -> list[Finding]:
    """The interpreter and this package."""
    where = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    finding = Finding("ok", "Python", where)
    if platform.system() != "Linux":
        finding = Finding("absent", "Python", where, "tried on Linux only")
    return [finding, Finding("ok", "diffusion-rt", __version__)]


def core_packages() -> list[Finding]:
    """What every picture needs; imported, since a broken wheel shows only then."""
    findings = []
    for distribution, module in CORE.items():
        trouble = _import_trouble(module)
        if version := version_of(distribution):
            repair = f"pip install --force-reinstall {distribution}" if trouble else ""
        else:
            repair = f"pip install {distribution}"
        state: Literal["ok", "wrong"] = "ok" if version and not trouble else "wrong"
        found = version or "not installed"
        findings.append(
            Finding(state, distribution, f"{found}; {trouble}" if trouble else found, repair)
        )
    return findings


def onnx_runtime() -> list[Finding]:
    """The engine, and whether its two distributions lie over each other."""
    have = {name: version for name in RUNTIMES if (version := version_of(name))}
    if not have:
        install = "pip install 'diffusion-rt[cpu]'"
        if version_of("cuda-bindings") and (driver := ask_driver()) and driver.devices:
            found = "not installed; without it only --engine trt and native draw"
            return [Finding("absent", "ONNX Runtime", found, install)]
        return [Finding("wrong", "ONNX Runtime", "not installed", install)]
    found = ", ".join(f"{name} {version}" for name, version in have.items())
    if len(have) > 1:
        return [
            Finding(
                "wrong",
                "ONNX Runtime",
                f"{found}: both own the same files, the later install overwrote the earlier",
                f"pip uninstall -y {' '.join(have)}, "
                "then pip install 'diffusion-rt[cpu]' or 'diffusion-rt[gpu]'",
            )
        ]
    (name,) = have
    try:
        providers = import_library().get_available_providers()
    except Exception as error:  # a broken wheel may raise anything
        trouble = f"importing onnxruntime fails: {error}"
        repair = f"pip install --force-reinstall {name}"
        return [Finding("wrong", "ONNX Runtime", f"{found}; {trouble}", repair)]
    short = [p.removesuffix("ExecutionProvider") for p in providers]
    line = Finding("ok", "ONNX Runtime", f"{found}; providers: {', '.join(short)}")
    if "CUDA" in short:
        return [line, Finding("ok", "CUDA provider", "built in; it loads where --provider cuda")]
    switch = f"for a GPU: pip uninstall -y {name}, then pip install 'diffusion-rt[gpu]'"
    return [line, Finding("absent", "CUDA provider", "not in this ONNX Runtime", switch)]


def nvidia_driver() -> list[Finding]:
    """The driver and the GPUs it shows."""
    driver = ask_driver()
    if driver is None:
        return [Finding("absent", "NVIDIA driver", "none", "needed for a GPU only")]
    release = driver.release or "unknown release"
    if driver.trouble:
        repair = "reboot after a driver update; in a container, start it with the GPU (--gpus all)"
        return [Finding("absent", "NVIDIA driver", f"{release}; {driver.trouble}", repair)]
    cuda = ".".join(map(str, driver.cuda or ()))
    found = f"{release}; CUDA up to {cuda}"
    findings = [Finding("ok", "NVIDIA driver", found)]
    if driver.cuda is not None and driver.cuda < CUBINS:
        old = driver.cuda < LEAST_CUDA
        found += "; too old" if old else "; it has to compile every kernel"
        repair = "for --engine trt and native: update it to R580 or newer"
        findings = [Finding("absent", "NVIDIA driver", found, repair)]
    if not driver.devices:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        repair = "see what nvidia-smi says; in a container, start it with the GPU (--gpus all)"
        if hidden is not None:
            repair = f"CUDA_VISIBLE_DEVICES={hidden!r} may hide them"
        findings.append(Finding("absent", "GPU", "no device", repair))
    return findings + [_gpu(index, device) for index, device in enumerate(driver.devices)]


def _gpu(index: int, device: Device) -> Finding:
    major, minor = device.capability
    free = f", {size(device.free)} free" if device.free is not None else ""
    found = f"{device.name}, sm_{major}{minor}, {size(device.memory)}{free}"
    if 10 * major + minor < LEAST_ARCH:
        repair = f"the engines trt and native want sm_{LEAST_ARCH} or newer; take --engine ort"
        return Finding("absent", f"GPU {index}", found, repair)
    return Finding("ok", f"GPU {index}", found)


def export_packages() -> list[Finding]:
    """What `diffusion-rt export` needs, told by its metadata: importing torch takes seconds."""
    versions = {name: version_of(name) for name in EXPORT}
    lacking = [name for name, version in versions.items() if version is None]
    if not lacking:
        return [Finding("ok", "export", ", ".join(f"{name} {v}" for name, v in versions.items()))]
    return [
        Finding(
            "absent",
            "export",
            f"{', '.join(lacking)} not installed",
            "for diffusion-rt export: pip install 'diffusion-rt[export]'",
        )
    ]


def processor() -> list[Finding]:
    """Cores that may be used, which is not how many there are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{allowed} of {os.cpu_count()} cores may be used"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        found += f"; OMP_NUM_THREADS={threads}"
    return [Finding("ok", "CPU", found)]


def memory() -> list[Finding]:
    """What may still be taken, the control group's limit included."""
    free = available()
    if free is None:
        return [Finding("absent", "memory", "unknown")]
    if free < LITTLE_MEMORY:
        return [Finding("wrong", "memory", f"{size(free)} free", "end other programs")]
    return [Finding("ok", "memory", f"{size(free)} free")]


def disk() -> list[Finding]:
    """Room in the folder that pictures go to by default."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    findings = [Finding("ok", "disk", f"{size(free)} free in {here}")]
    if free < LITTLE_DISK:
        findings = [
            Finding("absent", "disk", findings[0].found, "make room, or --output elsewhere")
        ]
    if not os.access(here, os.W_OK):
        text = f"{here} cannot be written"
        findings.append(Finding("absent", "folder", text, "give --output another folder"))
    return findings


def caches() -> list[Finding]:
    """The folders that export downloads to and that artefacts may go to."""
    try:
        base = user_cache()
    except BadInput as error:
        return [Finding("absent", "cache", str(error), "set XDG_CACHE_HOME")]
    hub = Path(os.environ.get("HF_HOME") or base / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub / "hub")
    return [_cache("cache", base / "diffusion-rt"), _cache("hub cache", hub)]


def shipped_model() -> list[Finding]:
    """The model that ships, each file held against its sha256."""
    try:
        model = open_model(SHIPPED)
        model.verify(full=True)
    except BadInput as error:
        repair = "install diffusion-rt again; in a clone: git checkout -- runtime/models"
        return [Finding("wrong", "shipped model", str(error), repair)]
    total = sum(record.size for record in model.manifest.files.values())
    return [Finding("ok", "shipped model", f"{model.manifest.name}, {size(total)}, intact")]


def report(findings: Sequence[Finding]) -> str:
    """The findings as lines of text, each fix below what it mends."""
    wide = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.subject:<{wide}}  {plain(finding.found)}")
        if finding.fix:
            lines.append(f"{'':<{wide + 4}}→ {plain(finding.fix)}")
    return "\n".join(lines)


CHECKS: tuple[Check, ...] = (
    python,
    core_packages,
    onnx_runtime,
    shipped_model,
    processor,
    memory,
    disk,
    caches,
    nvidia_driver,
    *doctor_gpu.CHECKS,
    export_packages,
    doctor_hub.hub_settings,
)


def _import_trouble(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken wheel may raise anything
        return f"importing {module} fails: {error}"
    return ""


def _cache(subject: str, folder: Path) -> Finding:
    nearest = folder
    while not os.access(nearest, os.F_OK) and nearest != nearest.parent:  # missing, or hidden
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        variable = "XDG_CACHE_HOME" if subject == "cache" else "HF_HOME"
        repair = f"make it a folder of yours, or set {variable}"
        return Finding("absent", subject, f"{folder} cannot be written", repair)
    if folder.exists() and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Finding(
            "absent", subject, f"{folder} can be written by others", f"chmod go-w {folder}"
        )
    free = size(shutil.disk_usage(nearest).free)
    made = "" if folder.exists() else ", made when needed"
    return Finding("ok", subject, f"{folder}{made}, {free} free")

"""Which engine runs a model here, and why."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.engines.spec import Precision

ENGINES = ("auto", "ort", "trt", "native", "null")
PROVIDERS = ("cpu", "cuda", "host")

Progress = Callable[[str, int, int], None]  # (stage, done, total)

_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine that this machine can run, the device, and the reason in words."""

    engine: str  # one of ENGINES but auto
    provider: str  # cpu, cuda, or host: our own arithmetic in NumPy
    reason: str

    def __str__(self) -> str:
        """Such as `ort on cpu: no GPU driver was found`."""
        return f"{self.engine} on {self.provider}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a GPU engine is opened with, as `open_backend` has it."""

    precision: Precision | None
    memory: int | None
    size: tuple[int, int] | None
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEngine:
    """An engine that runs on an NVIDIA GPU alone.

    `missing` says what it lacks here, with the fix, or None; where no model is given, of the
    machine alone. `open` makes its backend. Neither imports anything heavy before it is called.
    `reason` is why `auto` takes it where nothing is missing; None where `auto` never does.
    """

    missing: Callable[[ModelFolder | None], str | None]
    open: Callable[[ModelFolder, Asked], Backend]
    reason: str | None
    built: Callable[[ModelFolder], bool] = lambda model: False
    """Whether something was made for a model, so that its not being taken has to be explained."""


def _trt_missing(model: ModelFolder | None) -> str | None:
    from diffusion_rt.engines.trt.ready import missing

    return missing(model)


def _trt_built(model: ModelFolder) -> bool:
    from diffusion_rt.engines.trt.ready import built

    return built(model)


def _open_trt(model: ModelFolder, asked: Asked) -> Backend:
    from diffusion_rt.engines.trt.backend import open_trt

    if asked.memory is not None:
        raise BadInput("engine trt takes the memory that its engines were built for")
    return open_trt(model, precision=asked.precision)


def _native_missing(model: ModelFolder | None) -> str | None:
    from diffusion_rt.engines.device.ready import kernels_missing

    return kernels_missing("native")


def _open_native(model: ModelFolder, asked: Asked) -> Backend:
    from diffusion_rt.engines.native.backend import open_native

    return open_native(
        model,
        precision=asked.precision,
        budget=asked.memory,
        size=asked.size,
        progress=lambda done, total: asked.progress("compile", done, total),
    )


# In the order in which `auto` asks them. The native engine is not taken unasked as long as nobody
# has seen it run on a GPU.
GPU_ENGINES = {
    "trt": GpuEngine(
        missing=_trt_missing,
        open=_open_trt,
        reason="TensorRT engines are built for this model",
        built=_trt_built,
    ),
    "native": GpuEngine(missing=_native_missing, open=_open_native, reason=None),
}


def choose(
    engine: str = "auto", *, provider: str | None = None, model: ModelFolder | None = None
) -> Choice:
    """Settle on an engine and a device; BadInput where the one asked for cannot be had here.

    `auto` takes the GPU only where it is ready: `trt` where there are a driver, TensorRT, and plans
    built for `model`. Otherwise, and where a provider is named, it is ONNX Runtime, on the CPU if
    nothing else is said; where engines were built and cannot be used, the reason says why. An
    engine that was taken and then fails is an error, never a reason to take another. Imports no
    engine.
    """
    _check_known("engine", engine, ENGINES)
    if provider is not None:
        _check_known("provider", provider, PROVIDERS)
    if provider == "host":
        if engine != "native":
            raise BadInput(f"provider host is of engine native alone; got engine {engine}")
        return Choice("native", "host", "it was asked for")
    if engine in GPU_ENGINES:
        if provider == "cpu":
            raise BadInput(f"engine {engine} runs on a GPU; leave --provider out, or take ort")
        if lacking := _lacking(engine, model):
            raise BadInput(f"engine {engine}: {lacking}")
        return Choice(engine, "cuda", "it was asked for")
    if engine == "null":
        if provider == "cuda":
            raise BadInput("engine null runs on no device; leave the provider out")
        return Choice("null", "cpu", "it was asked for")
    passed_over = ""
    if engine == "auto" and provider is None and model is not None:
        for name, candidate in GPU_ENGINES.items():
            if candidate.reason is None:
                continue
            lacking = _lacking(name, model)
            if lacking is None:
                return Choice(name, "cuda", candidate.reason)
            if candidate.built(model):
                passed_over += f"; not {name}: {lacking}"
    if importlib.util.find_spec("onnxruntime") is None:
        raise BadInput(
            "engine ort: onnxruntime is not installed; pip install 'diffusion-rt[cpu]', or "
            "'diffusion-rt[gpu]' for CUDA"
        )
    if provider == "cuda":
        return Choice("ort", "cuda", "it was asked for")
    if provider == "cpu" or engine == "ort":
        return Choice("ort", "cpu", "it was asked for")
    if _has_driver():
        found = "a GPU driver was found, but the GPU is used only if asked for"
        return Choice("ort", "cpu", found + passed_over)
    return Choice("ort", "cpu", "no GPU driver was found")


def open_backend(
    folder: ModelFolder,
    engine: str = "auto",
    *,
    precision: Precision | None = None,
    threads: int | None = None,
    provider: str | None = None,
    memory: int | None = None,
    trust: bool = False,
    size: tuple[int, int] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Backend:
    """The backend for a model folder, as `choose` settles it.

    `precision` is that of the arithmetic; None takes what engines were built in, float16 on a GPU
    if the folder has it, else float32. `threads` is for the host's cores; None takes all that this
    process may use. `memory` is the most device memory, in bytes, that the native engine may take.
    `trust` lets TensorRT run the engines of this folder whoever built them, now and later. `size`,
    width and height in pixels, is what it is to be ready for, None for the model's own; `progress`
    hears of the stage `compile` where it has kernels to compile for that. Raises
    BadInput where the engine is unknown, not installed or not for this machine.
    """
    if trust:
        if engine not in ("auto", "trt"):
            raise BadInput(f"trust is for engines that TensorRT built; engine {engine} has none")
        from diffusion_rt.engines.trt.places import trust_plans

        trust_plans(folder)
    choice = choose(engine, provider=provider, model=folder)
    if choice.provider == "host":
        from diffusion_rt.engines.native.backend import open_host

        return open_host(folder, precision=precision)
    if choice.engine in GPU_ENGINES:
        if threads is not None:
            raise BadInput(f"engine {choice.engine} computes on the GPU; leave --threads out")
        asked = Asked(precision=precision, memory=memory, size=size, progress=progress)
        return GPU_ENGINES[choice.engine].open(folder, asked)
    if memory is not None:
        raise BadInput(f"memory is a budget of engine native; engine {choice.engine} has none")
    if precision is None:
        half = all("float16" in variants for variants in folder.manifest.graphs.values())
        precision = "float16" if choice.provider == "cuda" and half else "float32"
    if choice.engine == "null":
        return NullBackend(folder, precision=precision)
    from diffusion_rt.engines.ort.backend import OrtBackend

    return OrtBackend(
        folder,
        precision=precision,
        threads=threads,
        provider="cuda" if choice.provider == "cuda" else "cpu",
    )


def _lacking(engine: str, model: ModelFolder | None) -> str | None:
    """What a GPU engine lacks here, with the fix."""
    if not _has_driver():
        return (
            "no NVIDIA driver was found; install it, in a container start that with --gpus all, "
            "or use --engine ort"
        )
    return GPU_ENGINES[engine].missing(model)


def _has_driver() -> bool:
    return any(path.exists() for path in _DRIVER)


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 1) if isinstance(name, str) else []
        hint = f", did you mean {near[0]}?" if near else ";"
        raise BadInput(f"{what} {shown(name)} is unknown{hint} wants one of {', '.join(known)}")

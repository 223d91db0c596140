"""Which engine runs a model here, and why."""

import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.engines.spec import Precision

ENGINES = ("auto", "ort", "trt", "native", "null")
PROVIDERS = ("cpu", "cuda")

_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine that this machine can run, the device, and the reason in words."""

    engine: str  # ort or null
    provider: str  # cpu or cuda
    reason: str

    def __str__(self) -> str:
        """Such as `ort on cpu: no GPU driver was found`."""
        return f"{self.engine} on {self.provider}: {self.reason}"


def choose(engine: str = "auto", *, provider: str | None = None) -> Choice:
    """Settle on an engine and a device; BadInput where the one asked for cannot be had here.

    Imports no engine.
    """
    _check_known("engine", engine, ENGINES)
    if provider is not None:
        _check_known("provider", provider, PROVIDERS)
    if engine in ("trt", "native"):
        name = {"trt": "TensorRT", "native": "native"}[engine]
        raise BadInput(f"engine {engine}: this version has no {name} engine yet; use ort or auto")
    if engine == "null":
        if provider == "cuda":
            raise BadInput("engine null runs on no device; leave the provider out")
        return Choice("null", "cpu", "it was asked for")
    if importlib.util.find_spec("onnxruntime") is None:
        raise BadInput(
            "engine ort: onnxruntime is not installed; pip install 'diffusion-rt[cpu]', or "
            "'diffusion-rt[gpu]' for CUDA"
        )
    if provider == "cuda":
        return Choice("ort", "cuda", "it was asked for")
    if provider == "cpu" or engine == "ort":
        return Choice("ort", "cpu", "it was asked for")
    if any(path.exists() for path in _DRIVER):
        return Choice("ort", "cpu", "a GPU driver was found, but the GPU is used only if asked for")
    return Choice("ort", "cpu", "no GPU driver was found")


def open_backend(
    folder: ModelFolder,
    engine: str = "auto",
    *,
    precision: Precision | None = None,
    threads: int | None = None,
    provider: str | None = None,
) -> Backend:
    """The backend for a model folder, as `choose` settles it.

    `precision` is that of the arithmetic; None takes float16 on a GPU if the folder has it, else
    float32. `threads` is for the host's cores; None takes all that this process may use. Raises
    BadInput where the engine is unknown, not installed or not for this machine.
    """
    choice = choose(engine, provider=provider)
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


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 1) if isinstance(name, str) else []
        hint = f", did you mean {near[0]}?" if near else ";"
        raise BadInput(f"{what} {shown(name)} is unknown{hint} wants one of {', '.join(known)}")

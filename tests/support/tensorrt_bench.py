"""TensorRT for tests: the simulated one on a simulated device, or the real one on a GPU."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.protocol import Engine, Evaluations
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.buckets import parse_buckets
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.profiles import Coverage, Range
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.runtime.pipeline import Pipeline
from diffusion_rt.runtime.request import Request
from support import simulated_tensorrt
from support.device_graphs import simulated_gpu
from support.simulated_tensorrt import plugin
from support.simulated_tensorrt.rules import attach

PROMPT = "a large red circle above a small blue square on a green background"

Kind = Literal["simulated", "real"]
KINDS = ["simulated", pytest.param("real", marks=pytest.mark.trt)]

COVERAGE = Coverage(
    buckets=parse_buckets("128x128,96x160"),
    batch=Range(min=1, opt=1, max=3),
    chunks=Range(min=1, opt=1, max=2),
)
PLAIN = Options(precision="float32", vae_precision="float32", builder=BuilderOptions(tf32=False))

# Of the inputs and outputs of each graph of shapes-xl, within COVERAGE.
SIZES = {
    "text_encoder": {"batch": 3, "tokens": 32},
    "text_encoder_2": {"batch": 1, "tokens": 32},
    "unet_prompt": {"batch": 4, "tokens": 64},
    "unet_timestep": {"batch": 7, "n": 7},
    "unet_step": {"batch": 6, "tokens": 32, "height": 20, "width": 12},
    "vae_decoder": {"batch": 1, "height": 16, "width": 16, "image_height": 128, "image_width": 128},
    "vae_encoder": {
        "batch": 1,
        "height": 160,
        "width": 96,
        "latent_height": 20,
        "latent_width": 12,
    },
}


@contextmanager
def tensorrt_on(kind: Kind, **options: Any) -> Iterator[Gpu]:
    """A device on which `tensorrt` works for the block; `options` are the simulator's.

    Skips the test where the real one is wanted and not here.
    """
    _forget()
    if kind == "real":
        sys.modules.pop("tensorrt.plugin", None)
        if importlib.util.find_spec("tensorrt") is None:
            pytest.skip("skipped: no TensorRT")
        try:
            gpu = open_gpu()
        except BadInput as error:
            pytest.skip(f"skipped: no TensorRT ({error})")
        yield gpu
        gpu.close()
        return
    before = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = simulated_tensorrt
    sys.modules["tensorrt.plugin"] = plugin
    gpu = simulated_gpu(**options)
    assert isinstance(gpu.device, Simulator)
    attach(gpu.device)
    try:
        yield gpu
    finally:
        attach(None)
        _forget()
        del sys.modules["tensorrt"], sys.modules["tensorrt.plugin"]
        if before is not None:
            sys.modules["tensorrt"] = before


def _forget() -> None:
    """Let modules that hold one TensorRT be imported anew with another."""
    for name, module in list(sys.modules.items()):
        holds = hasattr(module, "trt") or hasattr(module, "trtp")
        if name.startswith("diffusion_rt.engines.trt.") and holds:
            del sys.modules[name]


def random_inputs(engine: Engine, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for name, spec in engine.inputs.items():
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            found[name] = rng.integers(0, 50, shape)
        else:
            found[name] = rng.normal(size=shape).astype(spec.dtype)
    return found


def drawn(pipeline: Pipeline, **settings: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latents and pixels of a request."""
    base: dict[str, Any] = {"prompt": PROMPT, "width": 128, "height": 128, "seed": 11}
    base |= {"num_inference_steps": 6, "guidance_scale": 4.0}
    result = pipeline.generate(Request(**(base | settings)))
    return result.latents, np.stack([np.asarray(image) for image in result.images])


def copied(folder: Path, model: ModelFolder) -> ModelFolder:
    """The same model elsewhere, its plans with it."""
    shutil.copytree(model.path, folder)
    return open_model(folder)


def plan_of(model: ModelFolder, graph: str = "unet_step") -> Path:
    (found,) = model.path.glob(f"engines/trt/*/{graph}.plan")
    return found


def refusal(model: ModelFolder, gpu: Gpu) -> str:
    """What is said where the UNet of a model cannot be opened."""
    with pytest.raises((BadInput, Fault)) as caught:
        open_trt(model, gpu).denoiser()(**one_evaluation())
    said = str(caught.value)
    assert "\n" not in said
    return said


def one_evaluation() -> dict[str, Any]:
    """The smallest request of a denoiser."""
    return {
        "conditioning": {
            "context": np.zeros((2, 32, 192), np.float32),
            "text_embeds": np.zeros((2, 128), np.float32),
            "time_ids": np.zeros((2, 6), np.float32),
        },
        "evaluations": Evaluations(
            timesteps=np.array([500], np.float32),
            c_in=np.ones(1, np.float32),
            weights=np.array([[[1.0, -0.1, 0.0]]]),
            draws=np.array([False]),
        ),
        "guidance_scale": 2.0,
        "guidance_rescale": 0.0,
        "start": np.zeros((1, 4, 16, 16), np.float32),
        "noise": (),
        "report": lambda done, total: None,
    }

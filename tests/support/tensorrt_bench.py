"""TensorRT for tests: the simulated one on a simulated device, or the real one on a GPU."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.trt.buckets import parse_buckets
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.profiles import Coverage, Range
from diffusion_rt.kernels.driver.simulator import Simulator
from support import simulated_tensorrt
from support.device_graphs import simulated_gpu
from support.simulated_tensorrt import plugin
from support.simulated_tensorrt.rules import attach

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

"""TensorRT for tests: the simulated one on a simulated device, or the real one on a GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.kernels.driver.simulator import Simulator
from support import simulated_tensorrt
from support.device_graphs import simulated_gpu
from support.simulated_tensorrt.rules import attach

Kind = Literal["simulated", "real"]
KINDS = ["simulated", pytest.param("real", marks=pytest.mark.trt)]


@contextmanager
def tensorrt_on(kind: Kind, **options: Any) -> Iterator[Gpu]:
    """A device on which `tensorrt` works for the block; `options` are the simulator's.

    Skips the test where the real one is wanted and not here.
    """
    _forget()
    if kind == "real":
        sys.modules.pop("tensorrt", None)
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
    gpu = simulated_gpu(**options)
    assert isinstance(gpu.device, Simulator)
    attach(gpu.device)
    try:
        yield gpu
    finally:
        attach(None)
        _forget()
        del sys.modules["tensorrt"]
        if before is not None:
            sys.modules["tensorrt"] = before


def _forget() -> None:
    """Let modules that hold one TensorRT be imported anew with another."""
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusion_rt.engines.trt.") and hasattr(module, "trt"):
            del sys.modules[name]

"""The simulated TensorRT in the place of the real one, and small builds with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.buckets import Bucket
from diffusion_rt.engines.trt.build import Summary, build
from diffusion_rt.engines.trt.options import Options
from diffusion_rt.engines.trt.profiles import Coverage, Range, fixed
from diffusion_rt.kernels.driver.simulator import Simulator
from support import simulated_tensorrt
from support.simulated_tensorrt import IHostMemory, plugin, rules
from support.simulated_tensorrt.build import Builder
from support.simulated_tensorrt.enums import Severity

SMALL = Coverage(
    buckets=(Bucket(128, 128),), batch=Range(min=1, opt=1, max=2), chunks=Range(min=1, opt=1, max=3)
)
SMALL_GRAPHS = ("text_encoder", "unet_prompt", "unet_step")  # of model_folders.make_model_folder


@contextmanager
def in_place_of_tensorrt(**device: Any) -> Iterator[Simulator]:
    """`import tensorrt` gives the simulated one, on a simulated device, for the block."""
    before = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = simulated_tensorrt
    sys.modules["tensorrt.plugin"] = plugin
    simulator = Simulator(**device)
    rules.attach(simulator)
    try:
        yield simulator
    finally:
        rules.attach(None)
        del sys.modules["tensorrt.plugin"]
        if before is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = before


def small_build(
    model: ModelFolder, device: Simulator, *, batch: int = 2, **changes: Any
) -> Summary:
    """Build some graphs of a small model for a largest batch."""
    arguments: dict[str, Any] = {
        "coverage": Coverage(
            buckets=SMALL.buckets, batch=Range(min=1, opt=1, max=batch), chunks=fixed(1)
        ),
        "options": Options(),
        "graphs": SMALL_GRAPHS,
    }
    arguments |= changes
    coverage, options = arguments.pop("coverage"), arguments.pop("options")
    return build(model, coverage, options, device=device, made_by="tests", **arguments)


def folder_of(model: Path) -> Path:
    """Where `small_build` leaves its plans."""
    return model / "engines" / "trt" / "sm_90-simulator"


def files_in(folder: Path) -> list[str]:
    """The names of all files there, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def failing(*log: str) -> Callable[..., IHostMemory | None]:
    """A `build_serialized_network` that logs errors and answers None."""

    def fail(self: Builder, network: Any, config: Any) -> IHostMemory | None:
        for line in log:
            self.logger.log(Severity.ERROR, line)
        return None

    return fail


def out_of_memory(self: Any, *arguments: Any) -> None:
    """Any call of TensorRT that fails for want of device memory."""
    self._logger.log(Severity.ERROR, "[defaultAllocator.cpp] Cuda Runtime (out of memory)")

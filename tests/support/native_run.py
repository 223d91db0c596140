"""Plans that run on a simulated device."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.arena import Arena
from diffusion_rt.engines.native.executor import Addresses, Program
from diffusion_rt.engines.native.ways import Chip, Library, enqueued
from diffusion_rt.engines.native.weights import Weights
from support.device_graphs import simulated_gpu

Array = NDArray[Any]


def chip_of(gpu: Gpu, libraries: tuple[Library, ...] = ()) -> Chip:
    """What ways depend on."""
    device = gpu.device
    return Chip(device.limits, device.tensor_map if device.arch >= 90 else None, libraries)


class Runner:
    """A program on a simulated device, with memory for its inputs and outputs."""

    def __init__(
        self, plan: p.Plan, gpu: Gpu | None = None, libraries: tuple[Library, ...] = ()
    ) -> None:
        self.gpu = gpu or simulated_gpu()
        device = self.gpu.device
        self.stream = device.stream()
        self.plan = plan
        self.program = Program(plan, chip_of(self.gpu, libraries))
        self.arena = Arena(device, self.stream.synchronize)
        self.arena.reserve(self.program.nbytes, self.program.counters)
        self.weights = Weights(device, self.stream, plan.weights.values(), plan.constants)
        self.weights.stream_from(Path())
        names = (*plan.inputs, *plan.outputs)
        self.bound = {name: device.allocate(plan.buffers[name].size) for name in names}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Capture all launches, replay them over poisoned outputs, and return these."""
        device, stream = self.gpu.device, self.stream
        for name, values in inputs.items():
            buffer = self.plan.buffers[name]
            assert values.shape == buffer.shape
            staged = device.pinned(buffer.size)
            staged.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            stream.copy(self.bound[name], staged)
        for name in self.plan.outputs:
            stream.fill(self.bound[name], 0xFF)
        calls = self.program.calls(self.places())
        ready = [enqueued(call, self.gpu.kernel) for call in calls]

        def enqueue() -> None:
            for call in ready:
                call(stream)

        stream.capture(enqueue).replay(stream)
        return {name: self._fetched(name) for name in self.plan.outputs}

    def places(self) -> Addresses:
        """Where everything lies."""
        return self.program.places(
            arena=self.arena.address,
            counters=self.arena.counters,
            bound={name: buffer.address for name, buffer in self.bound.items()},
            weight=self.weights.address,
        )

    def _fetched(self, name: str) -> Array:
        buffer = self.plan.buffers[name]
        staged = self.gpu.device.pinned(buffer.size)
        self.stream.copy(staged, self.bound[name])
        self.stream.synchronize()
        kind = np.uint16 if buffer.dtype == "bfloat16" else buffer.dtype
        found: Array = staged.array.view(kind).reshape(buffer.shape).copy()
        return found


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Random numbers of a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

"""Plans as real launches on the simulator, against the kernels' float64 references."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.arena import Arena
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.launches import Chip
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.kernels import attention, group_norm, layer_norm
from support.device_graphs import simulated_gpu
from support.native_plans import PlanMaker, heads, reshaped

Array = NDArray[Any]


class Runner:
    """A program on a simulated device, with memory for its inputs and outputs."""

    def __init__(self, plan: p.Plan, gpu: Gpu | None = None) -> None:
        self.gpu = gpu or simulated_gpu()
        device = self.gpu.device
        self.stream = device.stream()
        self.plan = plan
        self.program = Program(plan, Chip(device.limits))
        self.arena = Arena(device, self.stream.synchronize)
        self.arena.reserve(self.program.nbytes, self.program.counters)
        self.weights = Weights(device, self.stream, plan.weights.values(), plan.constants)
        self.weights.stream_from(Path())
        names = (*plan.inputs, *plan.outputs)
        self.bound = {name: device.allocate(plan.buffers[name].size) for name in names}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        device, stream = self.gpu.device, self.stream
        for name, values in inputs.items():
            buffer = self.plan.buffers[name]
            assert values.shape == buffer.shape
            staged = device.pinned(buffer.size)
            staged.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            stream.copy(self.bound[name], staged)
        for name in self.plan.outputs:
            stream.fill(self.bound[name], 0xFF)
        places = self.program.places(
            arena=self.arena.address,
            counters=self.arena.counters,
            bound={name: buffer.address for name, buffer in self.bound.items()},
            weight=self.weights.address,
        )
        calls = self.program.calls(places)
        kernels = [self.gpu.kernel(call.variant) for call in calls]

        def enqueue() -> None:
            for kernel, call in zip(kernels, calls, strict=True):
                stream.launch(kernel, call.launch, call.arguments)

        stream.capture(enqueue).replay(stream)
        return {name: self._fetched(name) for name in self.plan.outputs}

    def _fetched(self, name: str) -> Array:
        buffer = self.plan.buffers[name]
        staged = self.gpu.device.pinned(buffer.size)
        self.stream.copy(staged, self.bound[name])
        self.stream.synchronize()
        kind = np.uint16 if buffer.dtype == "bfloat16" else buffer.dtype
        found: Array = staged.array.view(kind).reshape(buffer.shape).copy()
        return found


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_one_after_the_other(dtype: p.Arithmetic) -> None:
    make = PlanMaker(dtype)
    images, pixels, channels = 2, 15, 16
    x = make.buffer("x", (images, pixels, channels), "input")
    middle = make.buffer("middle", x.shape)
    y = make.buffer("y", x.shape, "output")
    weights = {name: normal(n, channels) for n, name in enumerate(("gw", "gb", "lw", "lb"))}
    for name, values in weights.items():
        make.weight(name, values)
    make.operations = [
        p.GroupNorm(
            name="group",
            sources=(x,),
            weight="gw",
            bias="gb",
            groups=4,
            epsilon=1e-5,
            silu=True,
            output=middle,
        ),
        p.LayerNorm(
            name="layer",
            source=reshaped(middle, images * pixels, channels),
            weight="lw",
            bias="lb",
            epsilon=1e-6,
            output=reshaped(y, images * pixels, channels),
        ),
    ]
    values = normal(9, *x.shape).astype(dtype)
    gw, gb, lw, lb = (w.astype(dtype) for w in weights.values())
    between = group_norm.reference(values, gw, gb, 4, 1e-5, True).astype(dtype)
    truth = layer_norm.reference(between, lw, lb, 1e-6)
    runner = Runner(make.plan())
    for _ in range(2):  # counters are zero again
        found = runner(x=values)["y"]
        assert np.abs(found - truth).max() < 4 * np.finfo(dtype).eps * np.abs(truth).max()


def test_heads_of_packed_rows() -> None:
    make = PlanMaker()
    images, tokens, width, count = 2, 9, 32, 4
    packed = make.buffer("qkv", (images, tokens, 3 * width), "input")
    y = make.buffer("y", (images, tokens, width), "output")
    q, k, v = (
        heads(p.View("qkv", "float32", y.shape, packed.strides, place * width), count)
        for place in range(3)
    )
    make.operations = [
        p.Attention(
            name="attend", query=q, key=k, value=v, scale=0.3, causal=False, output=heads(y, count)
        )
    ]
    values = normal(1, *packed.shape)
    split = values.reshape(images, tokens, 3, count, width // count)
    truth = attention.reference(split[:, :, 0], split[:, :, 1], split[:, :, 2], 0.3)
    found = Runner(make.plan())(qkv=values)["y"]
    assert np.abs(found.reshape(truth.shape) - truth).max() < 1e-6


def test_what_no_kernel_takes_is_named() -> None:
    make = PlanMaker()
    x = make.buffer("x", (3, 12), "input")
    y = make.buffer("y", (3, 12), "output")
    make.weight("w", normal(0, 12))
    make.operations = [
        p.LayerNorm(name="odd", source=x, weight="w", bias="w", epsilon=1e-5, output=y)
    ]
    with pytest.raises(BadInput, match=r"unet_step: odd: no kernel .* 12 columns.*--engine ort"):
        Program(make.plan(), Chip(simulated_gpu().device.limits))

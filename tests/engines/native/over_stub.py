"""The native engine on the real device over the real bindings and the stub driver: which calls
bring a graph there and run it, and what comes out. Run by `test_over_stub.py` where libcuda.so.1
is the stub, which is an sm_90 chip.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.host_backend import HostBackend
from diffusion_rt.kernels.driver import open_device
from diffusion_rt.kernels.driver.cuda import context
from diffusion_rt.kernels.variant import Variant
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.device_graphs import HostImages
from support.stub_driver import Journal


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Journal:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    journal = Journal(importlib.import_module("cuda.bindings.driver"))
    monkeypatch.setattr(context, "bindings", lambda: journal)
    return journal


@pytest.fixture
def gpu(journal: Journal) -> Iterator[Gpu]:
    gpu = Gpu(open_device(), HostImages())
    yield gpu
    gpu.close()


def test_a_graph_is_brought_and_captured(gpu: Gpu, journal: Journal) -> None:
    device, model = gpu.device, open_model(SHIPPED)
    graphs = NativeGraphs(model, gpu, precision="float16")  # tensor maps and clusters of sm_90a
    engine = graphs.open("unet_timestep")
    arrays: dict[str, DeviceArray] = {}
    for name, spec in {**engine.inputs, **engine.outputs}.items():
        place = DeviceArray(0, spec.resolve({"n": 3}), spec.dtype)
        arrays[name] = DeviceArray(device.allocate(place.nbytes).address, place.shape, place.dtype)
    stream: Any = device.stream()
    for place in arrays.values():
        stream.fill(place, 0)
    journal.take()
    engine.bind(arrays)
    calls = Counter(journal.take())
    assert calls["cuMemAlloc"] == 2  # all weights, and the arena
    assert calls["cuMemHostAlloc"] == calls["cuMemFreeHost"] > 0
    engine.enqueue(stream)
    launches = [call for call in journal.take() if call != "cuFuncSetAttribute"]
    assert set(launches) == {"cuLaunchKernelEx"}  # nothing allocates, nothing waits
    assert len(launches) == len(engine.program.plan.operations)  # type: ignore[union-attr]
    graph = stream.capture(lambda: engine.enqueue(stream))
    journal.take()
    graph.replay(stream)
    assert journal.take() == ["cuGraphLaunch"]
    stream.synchronize()
    graph.close()
    graphs.close()
    freed = Counter(journal.take())
    assert freed["cuMemFree"] == 2


class TooNew(HostImages):
    """Images that the driver refuses, but for PTX."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        return b"of a later assembler" if arch else super().image(variant, arch)


def test_a_driver_that_refuses_every_cubin(
    gpu: Gpu, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, and gets PTX from then on; what comes out is the same."""
    model = open_model(SHIPPED)
    found: list[dict[str, NDArray[Any]]] = []
    for each in (gpu, Gpu(gpu.device, TooNew())):
        journal.take()
        engine = DeviceBackend(NativeGraphs(model, each), each).load("unet_timestep")
        sizes = {"n": 3}
        inputs = {n: np.ones(s.resolve(sizes), s.dtype) for n, s in engine.inputs.items()}
        outputs = {n: np.empty(s.resolve(sizes), s.dtype) for n, s in engine.outputs.items()}
        engine.bind({**inputs, **outputs})
        engine.enqueue()
        calls = Counter(journal.take())
        assert calls["cuModuleLoadData"] - calls["cuModuleGetFunction"] == len(found)
        found.append(outputs)
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name])
    assert len(caplog.records) == 1
    assert "the driver (CUDA 13.0) refuses kernels compiled ahead of time" in caplog.text


def test_a_picture(gpu: Gpu) -> None:
    model = open_model(SHIPPED)
    request = Request(
        prompt="a green square",
        width=32,
        height=32,
        num_inference_steps=2,
        seed=5,
        sampler="euler",
        guidance_scale=1.0,
    )
    with Pipeline(model, HostBackend(model)) as pipeline:
        wanted = pipeline.generate(request)
    with Pipeline(model, open_native(model, precision="float32", gpu=gpu)) as pipeline:
        found = pipeline.generate(request)
    largest = np.abs(wanted.latents).max()
    assert np.abs(found.latents - wanted.latents).max() < 1e-5 * largest
    pixels = [np.asarray(result.images[0]).astype(int) for result in (found, wanted)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1

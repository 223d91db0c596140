"""Engines of a device, fed with the host's arrays."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.staged import Staged
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.protocol import Buffers, Engine
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.driver.errors import DeviceLost
from support.device_graphs import HostGraphs, simulated_gpu
from support.fake_engine import FakeEngine

INPUTS = [TensorSpec("x", "float32", ("batch", 3)), TensorSpec("ids", "int64", ("batch",))]
OUTPUTS = [TensorSpec("y", "float16", ("batch", 3)), TensorSpec("total", "int64", ("batch",))]


def compute(buffers: Buffers) -> dict[str, NDArray[Any]]:
    return {"y": buffers["x"] * 2, "total": buffers["ids"] + 1}


class OneGraph:
    """A backend of one graph."""

    name = "one"

    def __init__(self, function: Callable[[Buffers], dict[str, NDArray[Any]]]) -> None:
        self.function = function

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        return FakeEngine(INPUTS, OUTPUTS, self.function)

    def denoiser(self) -> None: ...


def arrays(batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(batch, 3)).astype(np.float32),
        "ids": rng.integers(0, 99, batch),
        "y": np.full((batch, 3), np.nan, np.float16),
        "total": np.full(batch, -1),
    }


def check(buffers: dict[str, NDArray[Any]]) -> None:
    np.testing.assert_array_equal(buffers["y"], (buffers["x"] * 2).astype(np.float16))
    np.testing.assert_array_equal(buffers["total"], buffers["ids"] + 1)


@pytest.fixture(params=[None, 3], ids=["late", "drifting"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    made = simulated_gpu(seed=request.param, memory_bytes=1 << 16)
    yield made
    made.close()


@pytest.fixture
def graphs(gpu: Gpu) -> HostGraphs:
    return HostGraphs(OneGraph(compute), gpu)


@pytest.fixture
def engine(gpu: Gpu, graphs: HostGraphs) -> Iterator[Staged]:
    made = Staged("one", graphs.open("one"), gpu.device)
    yield made
    made.close()
    made.close()
    free = gpu.device.memory()
    assert free.free == free.total


def test_arrays_go_there_and_back(engine: Staged) -> None:
    for batch in (1, 5, 255, 5):
        buffers = arrays(batch, seed=batch)
        engine.bind(buffers)
        engine.enqueue()
        check(buffers)
        buffers["x"] += 1
        engine.enqueue()
        check(buffers)


def test_device_memory_is_taken_anew_only_for_other_shapes(
    engine: Staged, graphs: HostGraphs
) -> None:
    for batch, binds in ((4, 1), (4, 1), (6, 2), (4, 3)):
        buffers = arrays(batch)
        engine.bind(buffers)
        engine.enqueue()
        check(buffers)
        assert len(graphs.binds) == binds


def test_what_does_not_fit_is_refused(engine: Staged) -> None:
    with pytest.raises(BadInput, match="no arrays are bound"):
        engine.enqueue()
    with pytest.raises(BadInput, match="pass None"):
        engine.enqueue(7)
    wrong = arrays(2)
    wrong["y"] = wrong["y"].astype(np.float32)
    with pytest.raises(BadInput, match="y: got float32, wants float16"):
        engine.bind(wrong)
    engine.close()
    with pytest.raises(BadInput, match="closed; load it again"):
        engine.bind(arrays(2))


def test_too_little_memory_says_how_much_and_leaves_the_engine_usable(engine: Staged) -> None:
    with pytest.raises(OutOfMemory) as caught:
        engine.bind(arrays(9999))
    for words in ("one: 0.000 GB", "needed", "free", "nvidia-smi", "smaller size", "--engine ort"):
        assert words in str(caught.value)
    buffers = arrays(3)
    engine.bind(buffers)
    engine.enqueue()
    check(buffers)


def test_a_lost_device_is_a_fault(gpu: Gpu) -> None:
    def lose(buffers: Buffers) -> dict[str, NDArray[Any]]:
        raise DeviceLost("the device is gone", 719)

    engine = Staged("one", HostGraphs(OneGraph(lose), gpu).open("one"), gpu.device)
    engine.bind(arrays(2))
    with pytest.raises(Fault, match="one: the device is gone"):
        engine.enqueue()

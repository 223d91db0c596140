"""Engines of a device, fed with the host's arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import Pinned
from diffusion_rt.engines.device.staged import KEPT, Staged
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.protocol import Buffers, Engine, Entries
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.driver.errors import DeviceLost
from diffusion_rt.kernels.driver.interface import Span
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

    def check(self, graph: str, sizes: Mapping[str, int]) -> None: ...

    def denoiser(self) -> None: ...

    def decoder(self) -> None: ...

    def close(self) -> None: ...


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
    made = Staged("one", lambda: graphs.open("one"), gpu.device)
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


def run(engine: Staged, batch: int, only: Entries | None = None) -> dict[str, NDArray[Any]]:
    buffers = arrays(batch)
    engine.bind(buffers, only)
    engine.enqueue()
    return buffers


def test_device_memory_is_taken_anew_only_for_other_shapes(
    engine: Staged, graphs: HostGraphs
) -> None:
    for batch, binds in ((4, 1), (4, 1), (6, 2), (4, 2), (7, 3), (8, 4), (9, 5), (4, 5), (6, 6)):
        check(run(engine, batch))
        assert len(graphs.binds) == binds
    assert sum(not engine.closed for engine in graphs.engines) == KEPT + 1


def test_a_size_that_comes_again_is_captured(engine: Staged, graphs: HostGraphs) -> None:
    for batch, enqueued in ((4, 1), (4, 2), (4, 2), (6, 3), (4, 3), (6, 4), (6, 4)):
        check(run(engine, batch))
        assert len(graphs.enqueued) == enqueued
    graphs.generation += 1  # memory has moved
    for batch, enqueued in ((4, 6), (4, 6), (6, 8), (6, 8)):
        check(run(engine, batch))
        assert len(graphs.enqueued) == enqueued


def test_what_is_not_asked_for_stays_on_the_device(
    engine: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    fetch = Pinned.fetch

    def counted(pinned: Pinned, stream: Any, sources: Sequence[Span]) -> Any:
        fetched.append(sum(source.nbytes for source in sources))
        return fetch(pinned, stream, sources)

    monkeypatch.setattr(Pinned, "fetch", counted)
    whole = run(engine, 5)
    for entries in ([], [3], [4, 0], [2, 2]):
        found = run(engine, 5, {"y": entries, "total": [1]})
        others = [entry for entry in range(5) if entry not in entries]
        np.testing.assert_array_equal(found["y"][entries], whole["y"][entries])
        assert np.isnan(found["y"][others]).all()
        assert found["total"].tolist() == [-1, whole["total"][1], -1, -1, -1]
        assert fetched[-1] == 6 * len(entries) + 8
    check(run(engine, 5, {}))
    assert fetched[-1] == fetched[0] == 5 * (6 + 8)


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


def test_another_size_takes_the_memory_of_those_that_do_not_fit_beside_it(
    engine: Staged, graphs: HostGraphs
) -> None:
    check(run(engine, 700))  # more than a third of the memory
    check(run(engine, 701))
    check(run(engine, 702))
    check(run(engine, 701))
    assert len(graphs.binds) == 3
    assert sum(not engine.closed for engine in graphs.engines) == 3  # one keeps the weights
    check(run(engine, 1800))
    check(run(engine, 702))
    assert len(graphs.binds) == 5
    assert sum(not engine.closed for engine in graphs.engines) == 2


def test_a_lost_device_is_a_fault(gpu: Gpu) -> None:
    def lose(buffers: Buffers) -> dict[str, NDArray[Any]]:
        raise DeviceLost("the device is gone", 719)

    graphs = HostGraphs(OneGraph(lose), gpu)
    engine = Staged("one", lambda: graphs.open("one"), gpu.device)
    engine.bind(arrays(2))
    with pytest.raises(Fault, match="one: the device is gone"):
        engine.enqueue()

"""Launches that overlap, tried on the simulator: right or left off, kept, and then used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import build as building
from diffusion_rt.engines.native import overlapping
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.build import Built, measured
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.needed import Target
from diffusion_rt.engines.native.overlapping import Trial, choose_overlap, trial
from diffusion_rt.engines.native.tactics import Tactics, key_of
from diffusion_rt.engines.native.ways import Call, Enqueue, LibraryCall, launching
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver import DeviceError
from support.device_graphs import simulated_gpu

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
GRAPH, SIZES = "unet_timestep", {"n": 5}


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model(SHIPPED)


@pytest.fixture
def gpu() -> Gpu:
    return simulated_gpu(arch=90)


@pytest.fixture
def graphs(model: ModelFolder, gpu: Gpu) -> Iterator[NativeGraphs]:
    found = NativeGraphs(model, gpu, precision="float32")
    yield found
    found.close()


@pytest.fixture
def tactics(gpu: Gpu, tmp_path: Path) -> Tactics:
    return Tactics(tmp_path, key_of(gpu.device))


def again(tactics: Tactics, gpu: Gpu) -> Tactics:
    return Tactics(tactics.path.parent, key_of(gpu.device))


class Early(NativeGraphs):
    """On this chip kernels that overlap read what the run before has left of a middle value."""

    def ready(self, call: Call | LibraryCall, graph: str) -> Enqueue:
        first = isinstance(call, Call) and call.variant.kernel == "timestep_embedding"
        if first and graph in self.overlap:
            self.skipped = True
            return lambda stream: None
        return super().ready(call, graph)


class Refused(NativeGraphs):
    """A driver that takes no such launch."""

    def ready(self, call: Call | LibraryCall, graph: str) -> Enqueue:
        if graph in self.overlap:
            raise DeviceError("launch: invalid attribute", 1)
        return super().ready(call, graph)


def test_what_is_the_same_is_taken_where_it_is_faster(graphs: NativeGraphs) -> None:
    found = trial(graphs, GRAPH, SIZES)
    assert found.same
    assert min(found.apart, found.overlapped) > 0
    assert not graphs.overlap
    assert Trial(True, 2.0, 1.0).taken
    assert not Trial(True, 1.0, 1.0).taken
    assert not Trial(False, 2.0, 1.0).taken


def test_both_ways_are_launched_as_they_are_called(
    graphs: NativeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def noted(kernel: object, launch: object, arguments: object) -> Enqueue:
        seen.append(launch.overlap)  # type: ignore[attr-defined]
        return launching(kernel, launch, arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("diffusion_rt.engines.native.graphs.launching", noted)
    trial(graphs, GRAPH, SIZES)
    half = len(seen) // 2
    assert seen == [False] * half + [True] * half
    assert half >= 15


def test_another_result_is_said_and_never_taken(
    model: ModelFolder, gpu: Gpu, tactics: Tactics, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Early(model, gpu, precision="float32")
    choose_overlap(graphs, GRAPH, SIZES, tactics)
    assert graphs.skipped
    assert [record.message for record in caplog.records] == [
        f"launches that overlap stay off: on {gpu.device.name} {GRAPH} gives another result, or "
        "none that is finite"
    ]
    assert again(tactics, gpu).overlap is False


def test_a_launch_that_is_refused_leaves_them_off(
    model: ModelFolder, gpu: Gpu, tactics: Tactics, caplog: pytest.LogCaptureFixture
) -> None:
    choose_overlap(Refused(model, gpu, precision="float32"), GRAPH, SIZES, tactics)
    assert "stay off: unet_timestep: launch: invalid attribute" in caplog.text
    assert again(tactics, gpu).overlap is False


def test_a_trial_that_does_not_come_back_is_not_made_again(
    graphs: NativeGraphs, gpu: Gpu, tactics: Tactics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> Trial:
        raise KeyboardInterrupt

    monkeypatch.setattr(overlapping, "trial", killed)
    with pytest.raises(KeyboardInterrupt):
        choose_overlap(graphs, GRAPH, SIZES, tactics)
    assert again(tactics, gpu).overlap is False


@pytest.mark.parametrize("short", [OutOfMemory("no room"), driver.OutOfMemory("no room")])
def test_a_trial_without_memory_is_made_by_the_next_build(
    graphs: NativeGraphs,
    gpu: Gpu,
    tactics: Tactics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    short: Exception,
) -> None:
    def full(*_: object) -> Trial:
        raise short

    monkeypatch.setattr(overlapping, "trial", full)
    choose_overlap(graphs, GRAPH, SIZES, tactics)
    assert "were not tried: unet_timestep: no room" in caplog.text
    assert again(tactics, gpu).overlap is None


@pytest.mark.parametrize("faster", [True, False])
def test_a_build_tries_once_and_what_opens_after_it_does_so(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried: list[str] = []

    def found(graphs: NativeGraphs, graph: str, sizes: dict[str, int]) -> Trial:
        tried.append(graph)
        assert sizes == {"batch": 2, "tokens": 32, "height": 4, "width": 4}
        return Trial(True, 1.0, 0.9 if faster else 1.1)

    monkeypatch.setattr(overlapping, "trial", found)
    monkeypatch.setattr(building, "_measure", lambda *_: 0)

    def built(arch: int, force: bool = False, overlap: bool = True) -> Built:
        gpu = simulated_gpu(arch=arch)
        tactics = Tactics(cache_folder("tactics"), key_of(gpu.device))
        target = Target(model, [(32, 32)], [1], 32, "float32", (2, 1))
        return measured(
            target, gpu, tactics, force=force, overlap=overlap, progress=lambda *_: None
        )

    assert built(80).kept
    assert built(90, overlap=False).kept
    assert tried == []
    assert not built(90).kept
    assert built(90).kept
    assert tried == ["unet_step"]
    assert not built(90, force=True).kept
    assert tried == ["unet_step"] * 2
    built(90, overlap=False)
    assert Tactics(cache_folder("tactics"), key_of(simulated_gpu(arch=90).device)).overlap is None
    assert not built(90).kept
    assert tried == ["unet_step"] * 3
    for arch, asked in ((90, None), (90, True), (90, False), (80, None)):
        opened = open_native(model, gpu=simulated_gpu(arch=arch), overlap=asked)
        found_so = ("unet_step",) if arch == 90 and faster else ()
        wanted = {None: found_so, True: GRAPHS, False: ()}[asked]
        assert tuple(opened._graphs.overlap) == tuple(wanted)  # type: ignore[attr-defined]
        opened.close()

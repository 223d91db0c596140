"""What TensorRT's builder is asked for, and what is left where it fails or is interrupted."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.build import scratch_by_profile
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import open_plan
from diffusion_rt.kernels.driver.simulator import Simulator
from support.model_folders import make_model_folder
from support.simulated_build import folder_of, in_place_of_tensorrt, small_build
from support.simulated_tensorrt import IBuilderConfig, IHostMemory, OnnxParser, Runtime
from support.simulated_tensorrt.build import BUILDS, Builder
from support.simulated_tensorrt.enums import Severity

STEP = ("unet_step",)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusion-rt" / "trt"


@pytest.fixture
def device() -> Iterator[Simulator]:
    with in_place_of_tensorrt() as simulator:
        yield simulator


@pytest.fixture
def small(tmp_path: Path) -> ModelFolder:
    make_model_folder(tmp_path / "model", stored="float16")
    return open_model(tmp_path / "model")


def routed(model: ModelFolder, device: Simulator, route: str) -> None:
    options = Options(builder=BuilderOptions(build_route=route))
    small_build(model, device, options=options, graphs=STEP)


def test_a_build_route(small: ModelFolder, device: Simulator) -> None:
    route = "-conv_use_long_w=off -kgen:codegen:cuda_tile=2"
    routed(small, device, route)
    assert BUILDS[-1].config.build_route == route
    small_build(small, device, graphs=STEP)
    assert BUILDS[-1].config.build_route == ""


def test_a_build_route_that_tensorrt_does_not_take(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput) as refused:
        routed(small, device, "-conv_use_long_w=off -no_such=1")
    said = str(refused.value)
    assert re.search(r"-no_such=1: TensorRT refuses it: unknown build route .*--build-route", said)
    # Taken without a word, and not kept.
    monkeypatch.setattr(IBuilderConfig, "build_route", property(lambda s: "", lambda s, v: None))
    with pytest.raises(BadInput, match=r"-conv_use_long_w=off: TensorRT refuses it"):
        routed(small, device, "-conv_use_long_w=off")
    monkeypatch.setattr(IBuilderConfig, "all_build_routes", "")
    with pytest.raises(BadInput, match=r"this TensorRT has none; wants 11\.1 or newer on Linux"):
        routed(small, device, "-conv_use_long_w=off")
    assert not list(folder_of(small.path).glob("*.plan"))


def out_of_memory(self: Any, *arguments: Any) -> None:
    self._logger.log(Severity.ERROR, "[defaultAllocator.cpp] Cuda Runtime (out of memory)")


def test_timings_of_a_build_that_ends_early_are_kept(
    small: ModelFolder, device: Simulator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Builder, network: Any, config: Any) -> IHostMemory | None:
        self._time(network, config)
        out_of_memory(self)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "build_serialized_network", late)
        with pytest.raises(OutOfMemory):
            small_build(small, device, graphs=STEP)
    small_build(small, device, graphs=STEP)
    assert BUILDS[-1].timed == 0
    for file in cache.glob("*.timings"):
        file.unlink()

    def interrupted(stage: str, done: int, total: int) -> None:
        if stage == "unet_step" and done >= total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_build(small, device, graphs=STEP, force=True, report=interrupted)
    small_build(small, device, graphs=STEP, force=True)
    latest = BUILDS[-1]
    assert 0 < latest.timed < len({node.op_type for node in latest.network._model.graph.node})
    assert len(list(cache.glob("*.timings"))) == 1


def test_timings_that_cannot_be_written_hide_no_failure(
    small: ModelFolder, device: Simulator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_rt.engines.trt.timing_cache import TimingCache

    def broken(self: TimingCache, timings: bytes) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(TimingCache, "write", broken)
    monkeypatch.setattr(Builder, "build_serialized_network", out_of_memory)
    with pytest.raises(OutOfMemory, match="out of memory"):
        small_build(small, device, graphs=STEP)


def test_no_memory_to_build_says_what_is_known(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "build_serialized_network", out_of_memory)
    with pytest.raises(
        OutOfMemory,
        match=r"weights alone take \d\.\d{3} GB, \d\.\d{3} GB was free; close .* --workspace",
    ):
        small_build(small, device, graphs=STEP)


@pytest.mark.parametrize("stripped", [False, True])
def test_a_plan_that_cannot_be_loaded_now_is_kept(
    stripped: bool, small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(builder=BuilderOptions(stripped=stripped))
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "deserialize_cuda_engine", out_of_memory)
        made = small_build(small, device, options=options, graphs=STEP, say=said.append)
    assert len(said) == 1
    assert "unet_step: built, but what it needs to run is not known: " in said[0]
    assert "out of memory" in said[0]
    header = made.built[0].header
    assert header.scratch_bytes == ()
    assert scratch_by_profile(header) == {}
    with open_plan(made.folder, "unet_step") as plan:
        assert plan.header == header
    again = small_build(small, device, options=options, graphs=STEP)
    assert again.built[0].kept


def test_what_does_not_start(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, *arguments: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    for kind, name in ((OnnxParser, "parser"), (Runtime, "runtime")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "__init__", nothing)
            with pytest.raises(Fault, match=f"TensorRT's {name} does not start"):
                small_build(small, device, graphs=STEP)

    def wrong(self: Any, *arguments: Any) -> None:
        raise TypeError("incompatible constructor arguments")

    monkeypatch.setattr(Runtime, "__init__", wrong)
    with pytest.raises(TypeError, match="incompatible"):  # a mistake of ours stays one
        small_build(small, device, graphs=STEP)

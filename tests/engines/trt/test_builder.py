"""What TensorRT's builder is asked for, and what is kept of what it makes."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.buckets import Bucket
from diffusion_rt.engines.trt.build import scratch_by_profile
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import open_plan
from diffusion_rt.kernels.driver.simulator import Simulator
from support.simulated_build import (
    SMALL,
    failing,
    folder_of,
    out_of_memory,
    small_build,
)
from support.simulated_tensorrt import IBuilderConfig, IOptimizationProfile, Runtime
from support.simulated_tensorrt.build import BUILDS, Builder
from support.simulated_tensorrt.enums import BuilderFlag

pytestmark = pytest.mark.usefixtures("cache")


STEP = ("unet_step",)


def test_settings_reach_the_builder(small: ModelFolder, device: Simulator) -> None:
    builder = BuilderOptions(
        optimization_level=1,
        workspace_bytes=3 << 20,
        tiling="moderate",
        auxiliary_streams=2,
        compatibility="ampere+",
        version_compatible=True,
        stripped=True,
        tf32=False,
    )
    summary = small_build(small, device, options=Options(builder=builder), graphs=("unet_step",))
    config = BUILDS[-1].config
    assert config.builder_optimization_level == 1
    assert config.tiling_optimization_level.name == "MODERATE"
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.max_aux_streams == 2
    assert dict(config._limits) == {next(iter(config._limits)): 3 << 20}
    assert next(iter(config._limits)).name == "WORKSPACE"
    flags = {flag.name for flag in BuilderFlag if config.get_flag(flag)}
    assert flags == {"VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert summary.folder.name == "ampere+"
    small_build(small, device, graphs=("unet_step",))
    config = BUILDS[-1].config
    assert {flag.name for flag in BuilderFlag if config.get_flag(flag)} == {"TF32"}
    assert not config._limits


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_profiles_share_the_weights(
    share: float, shipped: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[IOptimizationProfile] = []
    create = Builder.create_optimization_profile

    def kept(self: Builder) -> IOptimizationProfile:
        made.append(create(self))
        return made[-1]

    monkeypatch.setattr(Builder, "create_optimization_profile", kept)
    coverage = replace(SMALL, buckets=(Bucket(128, 128), Bucket(64, 64)))
    small_build(
        shipped,
        device,
        coverage=coverage,
        options=Options(builder=BuilderOptions(profile_memory=share)),
        graphs=("vae_decoder",),
    )
    assert [profile.extra_memory_target for profile in made] == [share, share]


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


def test_attention_in_float32_is_the_default_where_it_can_be(
    shipped: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = small_build(shipped, device, graphs=("text_encoder",), force=True).built[0].header
    assert wide.key.edits.wide_attention
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "build_serialized_network", failing("no implementation of it"))
        with pytest.raises(Fault, match=r"no implementation .*; if .*: --no-float32-attention$"):
            small_build(shipped, device, graphs=("text_encoder",), force=True)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.2.1.2")
    said: list[str] = []
    plain = small_build(shipped, device, graphs=("text_encoder",), say=said.append)
    assert not plain.built[0].header.key.edits.wide_attention
    assert "wide attention on, now off" in said[0]


def test_a_stripped_plan_is_small(shipped: ModelFolder, device: Simulator, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(shipped.path, folder, ignore=shutil.ignore_patterns("engines"))
    sizes = []
    for stripped in (False, True):
        options = Options(builder=BuilderOptions(stripped=stripped))
        summary = small_build(open_model(folder), device, options=options, graphs=("unet_step",))
        (built,) = summary.built
        sizes.append(built.header.plan_bytes)
        assert built.header.key.weights  # REFIT_IDENTICAL wants the very weights it saw
    assert sizes[1] < sizes[0] / 10


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

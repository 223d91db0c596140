"""Builds with the simulated TensorRT: hits, misses and their reasons, and all that may go wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines.artefact import locked
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.buckets import Bucket
from diffusion_rt.engines.trt.build import build, scratch_by_profile
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import check_usable, open_plan, plan_path, read_header
from diffusion_rt.engines.trt.profiles import Coverage, Range
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.runtime.pipeline import SHIPPED
from support.model_folders import make_model_folder
from support.simulated_build import (
    SMALL,
    SMALL_GRAPHS,
    folder_of,
    in_place_of_tensorrt,
    small_build,
)
from support.simulated_tensorrt import IHostMemory, IOptimizationProfile
from support.simulated_tensorrt.build import BUILDS, Builder
from support.simulated_tensorrt.enums import BuilderFlag, Severity
from support.simulated_tensorrt.plan import unpack


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusion-rt"


@pytest.fixture
def device() -> Iterator[Simulator]:
    with in_place_of_tensorrt() as simulator:
        yield simulator


@pytest.fixture
def small(tmp_path: Path) -> ModelFolder:
    make_model_folder(tmp_path / "model", stored="float16")
    return open_model(tmp_path / "model")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("shapes") / "shapes-xl"
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("engines"))
    return open_model(folder)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_whole_of_shapes_xl(shipped: ModelFolder, device: Simulator) -> None:
    coverage = Coverage(
        buckets=(Bucket(128, 128), Bucket(192, 64)),
        batch=Range(min=1, opt=1, max=4),
        chunks=Range(min=1, opt=1, max=3),
    )
    reports: list[tuple[str, int, int]] = []
    said: list[str] = []
    summary = build(
        shipped,
        coverage,
        Options(),
        device=device,
        made_by="tests",
        report=lambda *line: reports.append(line),
        say=said.append,
    )
    assert [built.header.key.graph for built in summary.built] == list(GRAPHS)
    assert not any(built.kept or built.reasons for built in summary.built)
    assert files_in(summary.folder) == sorted(f"{graph}.plan" for graph in GRAPHS)
    assert not said
    assert {stage for stage, _, _ in reports} == {"verify", *GRAPHS}
    for graph in GRAPHS:
        shares = [done for stage, done, _ in reports if stage == graph]
        assert shares == sorted(shares)
        assert shares[-1] == 1_000_000
    for built in summary.built:
        with open_plan(summary.folder, built.header.key.graph) as plan:
            check_usable(plan.header, plan.path, shipped, summary.machine)
            found = unpack(bytes(plan.data))
        assert found is not None
        facts, _ = found
        profiles = built.header.key.profiles
        assert len(facts.profiles) == len(profiles) == len(built.header.scratch_bytes)
        assert all(count > 0 for count in built.header.scratch_bytes)
        for shapes, profile in zip(facts.profiles, profiles, strict=True):
            wanted = {spec.name: profile.shapes(spec) for spec in built.header.inputs}
            assert {name: tuple(given) for name, given in shapes.items()} == wanted
    assert list(scratch_by_profile(summary.built[4].header)) == ["128x128", "192x64"]

    count = len(BUILDS)
    again = build(shipped, coverage, Options(), device=device, made_by="tests")
    assert all(built.kept for built in again.built)
    assert [built.header for built in again.built] == [built.header for built in summary.built]
    assert len(BUILDS) == count


def test_a_miss_says_why_and_only_that_graph_is_built(
    small: ModelFolder, device: Simulator
) -> None:
    first = small_build(small, device, batch=2)
    said: list[str] = []
    second = small_build(small, device, batch=3, say=said.append)
    assert [built.kept for built in second.built] == [True, False, False]
    assert said == [
        "unet_prompt: built anew (batch 1:2:4, now 1:2:6)",
        "unet_step: built anew (batch 1:2:4, now 1:2:6)",
    ]
    assert second.built[2].reasons == ("batch 1:2:4, now 1:2:6",)
    assert second.built[0].header == first.built[0].header
    said.clear()
    options = Options(builder=BuilderOptions(optimization_level=5, tf32=False))
    third = small_build(small, device, batch=3, options=options, say=said.append)
    assert not any(built.kept for built in third.built)
    assert said[0] == "text_encoder: built anew (optimization level 3, now 5; tf32 on, now off)"


def test_a_changed_checkpoint_is_a_miss(tmp_path: Path, device: Simulator) -> None:
    folder = make_model_folder(tmp_path / "model", seed=0).path
    summary = small_build(open_model(folder), device)
    other = make_model_folder(tmp_path / "other", seed=1).path
    shutil.copytree(folder / "engines", other / "engines")
    model = open_model(other)
    header = read_header(folder_of(other), "unet_step")
    assert header is not None
    with pytest.raises(BadInput, match=r"was built for another unet/diffusion_pytorch_model"):
        check_usable(header, plan_path(folder_of(other), "unet_step"), model, summary.machine)
    said: list[str] = []
    small_build(model, device, say=said.append)
    assert said[0] == "text_encoder: built anew (unet/diffusion_pytorch_model.safetensors changed)"
    header = read_header(folder_of(other), "unet_step")
    assert header is not None
    check_usable(header, plan_path(folder_of(other), "unet_step"), model, summary.machine)


def test_a_model_whose_weights_changed_under_its_manifest(
    small: ModelFolder, device: Simulator
) -> None:
    weights = small.path / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadInput, match="was changed since it was exported"):
        small_build(small, device)
    assert not list(small.path.rglob("*.plan"))


def test_force_builds_again(small: ModelFolder, device: Simulator) -> None:
    small_build(small, device)
    said: list[str] = []
    forced = small_build(small, device, force=True, say=said.append)
    assert not any(built.kept for built in forced.built)
    assert said[-1] == "unet_step: built anew (asked for)"
    assert forced.built[-1].reasons == ("asked for",)


def test_a_damaged_plan_is_built_anew(small: ModelFolder, device: Simulator) -> None:
    small_build(small, device)
    path = plan_path(folder_of(small.path), "unet_step")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    said: list[str] = []
    again = small_build(small, device, say=said.append)
    assert [built.kept for built in again.built] == [True, True, False]
    assert len(said) == 1
    assert "its bytes changed since it was written" in said[0]
    assert again.built[2].reasons == (said[0].removeprefix("unet_step: built anew (")[:-1],)
    with open_plan(folder_of(small.path), "unet_step") as plan:
        assert unpack(bytes(plan.data)) is not None


def test_engines_that_somebody_else_built(
    small: ModelFolder, device: Simulator, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
        small_build(small, device)
    said: list[str] = []
    trusted = small_build(small, device, trust=True, say=said.append)
    assert all(built.kept for built in trusted.built)
    paths = [built.path for built in trusted.built]
    assert sorted(said) == sorted(f"{path}: trusted from now on" for path in paths)
    assert all(built.kept for built in small_build(small, device).built)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
        said.clear()
        anew = small_build(small, device, say=said.append)
    assert not any(built.kept for built in anew.built)
    assert "was not built by you here" in said[0]
    assert all("was not built by you here" in built.reasons[0] for built in anew.built)


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


def test_a_second_builder_is_refused(small: ModelFolder, device: Simulator) -> None:
    folder = folder_of(small.path)
    folder.mkdir(parents=True)
    with (
        locked(folder, "building engines", key="build"),
        pytest.raises(BadInput, match=r"in use by another process: .*building engines"),
    ):
        small_build(small, device)
    assert not list(folder.glob("*.plan"))
    small_build(small, device)


def test_no_tensorrt_here(small: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BadInput, match=r"TensorRT .*pip install 'diffusion-rt\[trt\]'"):
        small_build(small, Simulator())
    assert not (small.path / "engines").exists()


def test_a_tensorrt_that_is_too_old(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.13.3.9")
    with pytest.raises(BadInput, match=r"TensorRT 10\.13\.3\.9, wants 11\.0 or newer"):
        small_build(small, device)


@pytest.mark.parametrize(
    ("arch", "version", "options", "words"),
    [
        (75, None, Options(vae_precision="float32"), "sm_75; .* sm_80 and newer; .* --engine ort"),
        (90, "11.2.1.2", Options(wide_attention=True), "wants TensorRT 11.3 or newer"),
    ],
)
def test_what_a_machine_cannot_do(
    arch: int,
    version: str | None,
    options: Options,
    words: str,
    small: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusion_rt.kernels.driver.launch import limits_of

    with in_place_of_tensorrt() as device:
        device._limits = replace(limits_of(90), arch=arch)
        if version:
            monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
        with pytest.raises(BadInput, match=words):
            small_build(small, device, options=options)
    assert not (small.path / "engines").exists()


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


def test_too_little_device_memory_names_three_ways_out(shipped: ModelFolder) -> None:
    with (
        in_place_of_tensorrt(memory_bytes=1 << 20) as device,
        pytest.raises(OutOfMemory) as refused,
    ):
        small_build(shipped, device, graphs=("unet_step",))
    message = str(refused.value)
    assert "GB of device memory is needed" in message
    assert all(way in message for way in ("other programs", "--buckets", "--batch", "--workspace"))


def failing(*log: str) -> Callable[..., IHostMemory | None]:
    """A `build_serialized_network` that logs errors and answers None."""

    def fail(self: Builder, network: Any, config: Any) -> IHostMemory | None:
        for line in log:
            self.logger.log(Severity.ERROR, line)
        return None

    return fail


def test_what_a_failing_builder_says(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Builder,
        "build_serialized_network",
        failing("[defaultAllocator.cpp] Cuda Runtime (out of memory)", "[builder.cpp] Error 10"),
    )
    with pytest.raises(OutOfMemory, match=r"out of memory.*fewer --buckets"):
        small_build(small, device)
    monkeypatch.setattr(
        Builder, "build_serialized_network", failing("Could not find any\n implementation", "so")
    )
    with pytest.raises(Fault, match="text_encoder: TensorRT cannot build it: Could not find any "):
        small_build(small, device)
    monkeypatch.setattr(Builder, "build_serialized_network", failing())
    with pytest.raises(Fault, match="it gave no reason"):
        small_build(small, device)
    assert files_in(folder_of(small.path)) == []


def test_a_builder_that_does_not_start(small: ModelFolder, device: Simulator) -> None:
    from support.simulated_tensorrt import rules

    rules.attach(None)
    with pytest.raises(Fault, match="TensorRT's builder does not start"):
        small_build(small, device)


def test_what_the_parser_refuses(
    tmp_path: Path, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from support import model_folders

    whole = model_folders.graph_model

    def mixed(folder: Path, precision: Any) -> onnx.ModelProto:
        model = whole(folder, precision)
        (node,) = [node for node in model.graph.node if node.op_type == "Add"]
        node.op_type, node.name = "BitShift", "odd\none"
        return model

    monkeypatch.setattr(model_folders, "graph_model", mixed)
    model = open_model(make_model_folder(tmp_path / "model", stored="float16").path)
    with pytest.raises(Fault) as refused:
        small_build(model, device, graphs=("unet_step",))
    message = str(refused.value)
    assert message.startswith("unet_step.float16.onnx: TensorRT's parser refuses it: ")
    assert "\n" not in message


def test_a_weight_that_is_not_handed_over(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator's parser wants every initializer: the net under our own handing over."""
    from diffusion_rt.engines.trt import build as module

    monkeypatch.setattr(module, "map_weights", lambda *arguments: {})
    with pytest.raises(Fault, match="parser refuses it"):
        small_build(small, device, graphs=("unet_step",))


def test_timings_are_kept_across_models(
    small: ModelFolder, shipped: ModelFolder, tmp_path: Path, device: Simulator, cache: Path
) -> None:
    small_build(small, device, graphs=("unet_step",))
    assert BUILDS[-1].timed > 0
    (timings,) = (cache / "trt").glob("*.timings")
    assert timings.name.startswith("sm_90-simulator-")
    other = open_model(make_model_folder(tmp_path / "other", seed=5, stored="float16").path)
    small_build(other, device, graphs=("unet_step",))
    assert BUILDS[-1].timed == 0


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "folder", "theirs"])
def test_a_damaged_timing_cache_is_made_anew_and_said_once(
    damage: str, small: ModelFolder, device: Simulator, cache: Path
) -> None:
    import hashlib

    from diffusion_rt.engines.trt.timing_cache import MAGIC

    small_build(small, device)
    (timings,) = (cache / "trt").glob("*.timings")
    good = timings.read_bytes()
    timings.unlink()
    if damage == "folder":
        timings.mkdir()
    else:
        theirs = MAGIC + hashlib.sha256(b"not TensorRT's").digest() + b"not TensorRT's"
        content = {"garbage": b"\x00" * 99, "cut": good[:-1], "empty": b"", "theirs": theirs}
        timings.write_bytes(content[damage])
    said: list[str] = []
    small_build(small, device, force=True, say=said.append)
    told = [line for line in said if "timings" in line]
    assert len([line for line in told if "could not be used" in line]) == 1
    if damage == "folder":
        assert "timings were not kept" in told[-1]
    else:
        assert timings.read_bytes() == good


def test_timings_that_another_build_wrote_meanwhile_are_kept(
    small: ModelFolder, device: Simulator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_rt.engines.trt.timing_cache import timing_cache_for
    from support.simulated_tensorrt.build import ITimingCache

    plain = Builder.build_serialized_network

    def meanwhile(self: Builder, network: Any, config: Any) -> IHostMemory | None:
        theirs = ITimingCache._of(90, ["a layer of theirs"])
        timing_cache_for(machine).write(bytes(theirs.serialize()))
        return plain(self, network, config)

    machine = small_build(small, device, graphs=("text_encoder",)).machine
    monkeypatch.setattr(Builder, "build_serialized_network", meanwhile)
    small_build(small, device, graphs=("unet_step",))
    kept = timing_cache_for(machine).read()
    assert b"a layer of theirs" in kept
    assert b"MatMul" in kept


def test_half_written_timings_of_a_killed_build_are_removed(
    small: ModelFolder, device: Simulator, cache: Path
) -> None:
    (cache / "trt").mkdir(parents=True)
    left = cache / "trt" / ".diffusion-rt-0123456789abcdef.partial"
    left.write_bytes(b"half")
    small_build(small, device)
    assert [path.suffix for path in (cache / "trt").iterdir()] == [".timings"]


def test_a_full_disk_leaves_nothing(
    small: ModelFolder, device: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="the disk is full"):
        small_build(small, device)
    assert files_in(folder_of(small.path)) == []


def test_a_model_folder_that_cannot_be_written(
    small: ModelFolder, device: Simulator, cache: Path
) -> None:
    (small.path / "engines").write_text("in the way")
    summary = small_build(small, device)
    assert summary.folder == cache / "trt" / small.sha256[:32] / "sm_90-simulator"
    assert files_in(summary.folder) == [f"{graph}.plan" for graph in SMALL_GRAPHS]
    assert all(built.kept for built in small_build(small, device).built)


def test_ctrl_c_ends_the_build_and_leaves_nothing(shipped: ModelFolder, device: Simulator) -> None:
    folder = folder_of(shipped.path)
    shutil.rmtree(shipped.path / "engines", ignore_errors=True)
    steps: list[int] = []

    def report(stage: str, done: int, total: int) -> None:
        if stage == "unet_step":
            steps.append(done)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    with pytest.raises(KeyboardInterrupt):
        small_build(
            shipped, device, coverage=SMALL, graphs=("unet_prompt", "unet_step"), report=report
        )
    assert len(steps) < 200  # of some 560 layers
    assert files_in(folder) == ["unet_prompt.plan"]  # what was finished stays
    assert not [thread for thread in threading.enumerate() if thread.name == "engine build"]
    again = small_build(shipped, device, coverage=SMALL, graphs=("unet_prompt", "unet_step"))
    assert [built.kept for built in again.built] == [True, False]


def test_a_report_that_fails_ends_the_build_with_its_own_error(
    small: ModelFolder, device: Simulator
) -> None:
    def report(stage: str, done: int, total: int) -> None:
        if stage == "unet_step":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        small_build(small, device, report=report)
    assert "unet_step.plan" not in files_in(folder_of(small.path))


def test_killed_200_times(tmp_path: Path) -> None:
    """kill -9 at any moment of a build: never a plan that loads and is wrong."""
    make_model_folder(tmp_path / "model", stored="float16")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parents[2] / "support" / "killed_builds.py"
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path / "model"), "200"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["killed"] == 200
    assert found["wrong"] == []
    assert found["whole"] > 100  # plans that were there and right
    assert found["partial"] > 0  # kills that hit a file being written
    assert found["unfinished"] > 50  # builds that a kill left without one of their plans
    folder = folder_of(tmp_path / "model")
    with in_place_of_tensorrt() as device:
        small_build(open_model(tmp_path / "model"), device, force=True)
    assert files_in(folder) == [f"{graph}.plan" for graph in SMALL_GRAPHS]


def test_the_machine_of_a_build(small: ModelFolder, device: Simulator) -> None:
    summary = small_build(small, device)
    version = sys.modules["tensorrt"].__version__
    assert summary.machine == Machine(
        gpu="simulator", arch=90, driver=device.driver, tensorrt=version
    )

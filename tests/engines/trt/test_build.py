"""Builds with the simulated TensorRT: what is kept, what is built anew, and why."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from diffusion_rt.engines.artefact import locked
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.buckets import Bucket
from diffusion_rt.engines.trt.build import build, scratch_by_profile
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import check_usable, open_plan, plan_path, read_header
from diffusion_rt.engines.trt.profiles import Coverage, Range
from diffusion_rt.kernels.driver.simulator import Simulator
from support.model_folders import make_model_folder
from support.simulated_build import (
    SMALL_GRAPHS,
    files_in,
    folder_of,
    small_build,
)
from support.simulated_tensorrt.build import BUILDS
from support.simulated_tensorrt.plan import unpack

pytestmark = pytest.mark.usefixtures("cache")


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


def test_the_machine_of_a_build(small: ModelFolder, device: Simulator) -> None:
    summary = small_build(small, device)
    version = sys.modules["tensorrt"].__version__
    assert summary.machine == Machine(
        gpu="simulator", arch=90, driver=device.driver, tensorrt=version
    )


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


def test_engines_of_somebody_else_do_not_hide_ours(
    small: ModelFolder, device: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs lie in a folder that cannot be written, ours in the cache, and theirs are newer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
        theirs = small_build(small, device).folder
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(small.path))
    assert not any(built.kept for built in small_build(small, device).built)
    for path in theirs.iterdir():
        os.utime(path, (4e9, 4e9))
    assert all(built.kept for built in small_build(small, device).built)


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


def test_a_model_folder_that_cannot_be_written(
    small: ModelFolder, device: Simulator, cache: Path
) -> None:
    (small.path / "engines").write_text("in the way")
    summary = small_build(small, device)
    assert summary.folder == cache / "trt" / small.sha256[:32] / "sm_90-simulator"
    assert files_in(summary.folder) == [f"{graph}.plan" for graph in SMALL_GRAPHS]
    assert all(built.kept for built in small_build(small, device).built)


def test_engines_in_a_folder_that_cannot_be_written_any_more_are_kept(
    small: ModelFolder, device: Simulator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a larger batch does not change stays where it is; the rest goes to the cache."""
    own = small_build(small, device, batch=2).folder
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(small.path))
    more = small_build(small, device, batch=3)
    assert more.folder == cache / "trt" / small.sha256[:32] / own.name
    assert [built.path.parent for built in more.built] == [own, more.folder, more.folder]
    assert [built.kept for built in more.built] == [True, False, False]
    assert files_in(more.folder) == ["unet_prompt.plan", "unet_step.plan"]
    assert all(built.kept for built in small_build(small, device, batch=3).built)
    # What is asked for lies in the model's folder, but the cache has one that would be run.
    fewer = small_build(small, device, batch=2)
    assert [built.kept for built in fewer.built] == [True, False, False]
    assert fewer.built[1].path.parent == more.folder
    # A damaged one there is no way to replace is built in the cache, which is then newer.
    path = plan_path(own, "text_encoder")
    path.write_bytes(path.read_bytes()[:-1])
    mended = small_build(small, device, batch=2)
    assert [built.kept for built in mended.built] == [False, True, True]
    assert mended.built[0].path.parent == more.folder
    assert all(built.kept for built in small_build(small, device, batch=2).built)

"""Timings outlive builds, also those that fail, and cost nothing but time where they are lost."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.timing_cache import MAGIC, TimingCache, timing_cache_for
from diffusion_rt.kernels.driver.simulator import Simulator
from support.model_folders import make_model_folder
from support.simulated_build import (
    out_of_memory,
    small_build,
)
from support.simulated_tensorrt import IHostMemory
from support.simulated_tensorrt.build import BUILDS, Builder, ITimingCache

pytestmark = pytest.mark.usefixtures("cache")


STEP = ("unet_step",)


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
    for file in (cache / "trt").glob("*.timings"):
        file.unlink()

    def interrupted(stage: str, done: int, total: int) -> None:
        if stage == "unet_step" and done >= total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_build(small, device, graphs=STEP, force=True, report=interrupted)
    small_build(small, device, graphs=STEP, force=True)
    latest = BUILDS[-1]
    assert 0 < latest.timed < len({node.op_type for node in latest.network._model.graph.node})
    assert len(list((cache / "trt").glob("*.timings"))) == 1


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "folder", "theirs"])
def test_a_damaged_timing_cache_is_made_anew_and_said_once(
    damage: str, small: ModelFolder, device: Simulator, cache: Path
) -> None:
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


def test_timings_that_cannot_be_written_hide_no_failure(
    small: ModelFolder, device: Simulator, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TimingCache, timings: bytes) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(TimingCache, "write", broken)
    monkeypatch.setattr(Builder, "build_serialized_network", out_of_memory)
    with pytest.raises(OutOfMemory, match="out of memory"):
        small_build(small, device, graphs=STEP)


def test_half_written_timings_of_a_killed_build_are_removed(
    small: ModelFolder, device: Simulator, cache: Path
) -> None:
    (cache / "trt").mkdir(parents=True)
    left = cache / "trt" / ".diffusion-rt-0123456789abcdef.partial"
    left.write_bytes(b"half")
    small_build(small, device)
    assert [path.suffix for path in (cache / "trt").iterdir()] == [".timings"]

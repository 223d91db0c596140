"""Where plans lie: by GPU, in the model's folder or, where that cannot be written, in the cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.places import folder_to_build, folders_to_load, target_name
from diffusion_rt.engines.trt.plan_file import open_plan, write_plan
from support.model_folders import make_model_folder
from support.plans import MACHINE, header_of

A10 = replace(MACHINE, gpu="NVIDIA A10", arch=86)
H100 = replace(MACHINE, gpu="NVIDIA H100 80GB HBM3")


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    make_model_folder(tmp_path / "model")
    return open_model(tmp_path / "model")


def test_plans_for_two_gpus_lie_side_by_side(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert target_name(H100, "none") == "sm_90-nvidia-h100-80gb-hbm3"
    assert target_name(replace(MACHINE, gpu="../.."), "none") == "sm_90-gpu"
    mine = folder_to_build(model, MACHINE, "none")
    assert mine == model.path / "engines" / "trt" / "sm_90-nvidia-h200"
    anyone = folder_to_build(model, A10, "ampere+")
    same = folder_to_build(model, H100, "same")
    assert folders_to_load(model, MACHINE) == [[mine], [same], [anyone]]
    assert folders_to_load(model, A10) == [[anyone]]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written, for root too (who only `mkdir` over a file stops)."""
    (folder / "engines").write_text("in the way")
    try:
        yield
    finally:
        (folder / "engines").unlink()


def test_a_model_folder_that_cannot_be_written(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with read_only(model.path):
        folder = folder_to_build(model, MACHINE, "none")
        name = "sm_90-nvidia-h200"
        assert folder == tmp_path / "cache" / "diffusion-rt" / "trt" / model.sha256[:32] / name
        write_plan(folder, header_of(b"plan"), b"plan")
        assert folders_to_load(model, MACHINE) == [[folder]]
        with open_plan(folder, "unet_step") as plan:
            assert bytes(plan.data) == b"plan"

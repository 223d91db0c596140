"""Bytes that both sides need: the checkpoint on each, and the engine that a set is for."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.bench import disk, installed
from diffusion_rt.bench.records import Origin, Record
from support.races import origin

CHECKPOINT = 7


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("own_size", 28), ("own_wheel", 20)):
        monkeypatch.setattr(installed, name, lambda size=size: size)
    monkeypatch.setattr(installed, "checkpoint_size", lambda model: CHECKPOINT)


@pytest.fixture
def here() -> Origin:
    return replace(origin("startup"), versions={"diffusion-rt": "0.1", "torch": "2.0+cpu"})


def middle(record: Record) -> float:
    assert record.spread is not None
    return record.spread.p50


def test_both_sides_have_the_checkpoint(monkeypatch: pytest.MonkeyPatch, here: Origin) -> None:
    sides = {"onnxruntime": 100, "torch": 1000}
    monkeypatch.setattr(
        installed, "closure", lambda roots: [name for name in sides if name in roots]
    )
    monkeypatch.setattr(installed, "DIFFUSERS", ("torch",))
    monkeypatch.setattr(installed, "size_of", lambda names: sum(sides[name] for name in names))
    ours, theirs, ratio = disk.records_of_environment(here)
    assert (middle(ours), middle(theirs)) == (128, 1000 + CHECKPOINT)
    assert middle(ratio) == (1000 + CHECKPOINT) / 128
    assert ours.setting == theirs.setting == {"torch": "cpu"}
    assert ours.versions == here.versions


def test_the_engine_is_known_by_what_is_downloaded(tmp_path: Path, here: Origin) -> None:
    files = {"ours/cuda_bindings-13.5-cp311-cp311-linux.whl": 100, "ours/rich-1.tar.gz": 5}
    files["theirs/torch-2.15-py3-none-any.whl"] = 1 << 20
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    ours, theirs, ratio = disk.records_of_downloads(here, tmp_path / "ours", tmp_path / "theirs")
    assert ours.versions == {"diffusion-rt": "0.1", "torch": "2.15", "cuda-bindings": "13.5"}
    assert ours.measure == "download"
    assert ours.setting == {"torch": "cuda", "engine": "native"}
    assert (middle(ours), middle(theirs)) == (105 + 20, (1 << 20) + CHECKPOINT)
    assert middle(ratio) == ((1 << 20) + CHECKPOINT) / 125


def test_folders_that_pip_filled_are_counted(tmp_path: Path, here: Origin) -> None:
    for side, package, size in (("ours", "onnxruntime_gpu", 50), ("theirs", "torch", 500)):
        about = tmp_path / side / f"{package}-1.5.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (tmp_path / side / "a.so").write_bytes(bytes(size))
    ours, theirs, _ = disk.records_of_folders(here, tmp_path / "ours", tmp_path / "theirs")
    words = sum(path.stat().st_size for path in tmp_path.glob("ours/*/METADATA"))
    assert middle(ours) == 50 + words + 28, "this package was not in it"
    assert middle(theirs) == 500 + (words - len("onnxruntime_gpu") + len("torch")) + CHECKPOINT
    assert ours.measure == "installed"
    assert ours.setting == {"torch": "cuda", "engine": "ort"}
    assert ours.versions == {"diffusion-rt": "0.1", "torch": "1.5", "onnxruntime-gpu": "1.5"}

"""Opening a model folder: every file is the one that was exported, or the folder is refused."""

import os
import shutil
import time
from pathlib import Path

import pytest

from diffusion_rt.engines import model_folder
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model, record_of
from support.model_folders import WEIGHTS, SmallModel, make_model_folder


@pytest.fixture
def model(tmp_path: Path) -> SmallModel:
    return make_model_folder(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_folder_opens(model: SmallModel) -> None:
    folder = open_model(model.path)
    assert folder.path == model.path.resolve()
    assert folder.graph("unet_step", "float32") == folder.path / "unet_step.float32.onnx"
    heard: list[int] = []
    folder.verify(full=True, progress=heard.append)
    assert sum(heard) == sum(record.size for record in folder.manifest.files.values())


def test_for_what_reads_no_weights_they_may_be_missing(model: SmallModel) -> None:
    (model.path / WEIGHTS).unlink()
    assert "no such file" in refusal(model.path)
    assert open_model(model.path, weights=False).manifest.name == "small"
    (model.path / "tokenizer/vocab.json").write_text("{}")
    with pytest.raises(BadInput, match=r"vocab\.json: 2 bytes long"):
        open_model(model.path, weights=False)


def test_a_linked_folder_opens_and_the_cache_key_is_that_of_its_manifest(
    model: SmallModel, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(model.path)
    linked, direct = open_model(tmp_path / "link"), open_model(model.path)
    assert linked == direct
    other = make_model_folder(tmp_path / "other", seed=1)
    assert open_model(other.path).sha256 != direct.sha256


def test_what_is_no_model_folder(tmp_path: Path, model: SmallModel) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    assert "not a folder" in refusal(model.path / "manifest.json")
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json: not a model folder" in refusal(tmp_path / "empty")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "model_index.json").write_text("{}")
    assert "not exported yet: run diffusion-rt export '" in refusal(tmp_path / "a b")
    assert refusal(tmp_path / "a b").endswith("/a b'")


@pytest.mark.parametrize("name", [WEIGHTS, "unet_step.float32.onnx", "tokenizer/vocab.json"])
def test_every_change_of_a_file_is_seen(model: SmallModel, name: str) -> None:
    path = model.path / name
    content = path.read_bytes()
    for changed, words in [
        (content + b" ", "bytes long, the manifest says"),
        (content[:-1], "bytes long, the manifest says"),
        (bytes([content[0] ^ 1]) + content[1:], "was changed since it was exp"),
    ]:
        path.write_bytes(changed)
        assert words in refusal(model.path)
    path.write_bytes(content)
    open_model(model.path)


def test_changed_weights_are_found_by_the_full_check_only(model: SmallModel) -> None:
    path = model.path / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    folder = open_model(model.path)
    folder.verify(full=False)
    with pytest.raises(BadInput, match="was changed since it was exported"):
        folder.verify(full=True)


def test_links_and_strange_files_are_refused(model: SmallModel, tmp_path: Path) -> None:
    path = model.path / "unet_step.float32.onnx"
    outside = tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    assert "a symbolic link; put the file itself there" in refusal(model.path)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refusal(model.path)
    path.unlink()
    assert f"{path}: no such file" in refusal(model.path)
    shutil.copy(outside, path)
    shutil.move(model.path / "unet", tmp_path / "unet")
    assert "unet: no such folder" in refusal(model.path)
    (model.path / "unet").symlink_to(tmp_path / "unet")
    assert "unet: not a folder, perhaps a symbolic link" in refusal(model.path)


def test_a_linked_manifest_is_refused(model: SmallModel, tmp_path: Path) -> None:
    shutil.move(model.path / "manifest.json", tmp_path)
    (model.path / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "a symbolic link" in refusal(model.path)


def test_a_hard_linked_file_is_hashed_whole_or_refused(
    model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model.path / WEIGHTS
    other = tmp_path / "other-name"
    os.link(path, other)
    open_model(model.path)
    content = path.read_bytes()
    with other.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([content[-1] ^ 1]))
    assert "was changed since it was exported" in refusal(model.path)
    monkeypatch.setattr(model_folder, "MAX_LINKED", 10)
    assert "hard-linked, it could be changed under another name" in refusal(model.path)


def test_a_table_that_is_no_safetensors_header_is_refused(model: SmallModel) -> None:
    manifest = model.path / "manifest.json"
    weights = open_model(model.path).manifest.files[WEIGHTS]
    assert weights.table is not None
    text = manifest.read_text()
    text = text.replace('"table": null', f'"table": "{weights.table}"')
    manifest.write_text(text)
    assert "bytes, wants at most" in refusal(model.path) or "changed since" in refusal(model.path)


def test_a_graph_that_is_not_there_is_named(model: SmallModel) -> None:
    folder = open_model(model.path)
    with pytest.raises(BadInput, match="has no ONNX graph other, only text_encoder, "):
        folder.graph("other", "float32")
    with pytest.raises(BadInput, match="no bfloat16 graph of unet_step, only float32, float16"):
        folder.graph("unet_step", "bfloat16")  # type: ignore[arg-type]


def test_a_broken_checkpoint_gets_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(BadInput, match="a zip archive"):
        record_of(path)


def test_opening_is_fast(model: SmallModel) -> None:
    best = min(_seconds_to_open(model.path) for _ in range(5))
    assert best < 0.03


def _seconds_to_open(folder: Path) -> float:
    start = time.process_time()
    open_model(folder)
    return time.process_time() - start

"""Where an export goes: copies, locks, and what is undone when it fails."""

import fcntl
import hashlib
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export import place
from diffusion_rt.export.checkpoint import Checkpoint, open_checkpoint
from diffusion_rt.export.place import (
    contents,
    copied,
    obstacle_in_place,
    prepared,
    publish,
)
from support.checkpoints import MakeCheckpoint

UNET = "unet/diffusion_pytorch_model.safetensors"


def missing_files(source: Checkpoint, output: Path) -> dict[str, int]:
    return dict(contents(source, output, lambda count: None).missing)


@pytest.fixture
def source(checkpoint: MakeCheckpoint) -> Checkpoint:
    return open_checkpoint(checkpoint())


def test_links_stand_in_the_way_of_an_export_in_place(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    assert obstacle_in_place(open_checkpoint(checkpoint("plain"))) is None
    hard = checkpoint("hard")
    os.link(hard / UNET, tmp_path / "other")
    assert "hard links" in str(obstacle_in_place(open_checkpoint(hard)))
    soft = checkpoint("soft")
    (soft / UNET).rename(tmp_path / "blob")
    (soft / UNET).symlink_to(tmp_path / "blob")
    assert "symbolic links" in str(obstacle_in_place(open_checkpoint(soft)))
    with (
        pytest.raises(BadInput, match="as hub caches do; export into another folder"),
        prepared(open_checkpoint(soft), soft),
    ):
        pass


def test_a_folder_that_cannot_be_written(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert obstacle_in_place(source) == "cannot be written"


def test_links_are_copied_as_files(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder, output = checkpoint(), tmp_path / "output"
    (folder / UNET).rename(tmp_path / "blob")
    (folder / UNET).symlink_to(tmp_path / "blob")
    source = open_checkpoint(folder)
    with (
        prepared(source, output) as in_place,
        copied(source, output, missing_files(source, output), lambda count: None),
    ):
        assert not in_place
    assert not (output / UNET).is_symlink()
    assert (output / UNET).read_bytes() == (tmp_path / "blob").read_bytes()


def test_a_folder_of_other_things_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="holds other files"), prepared(source, tmp_path / "notes"):
        pass
    with (
        pytest.raises(BadInput, match="not a folder"),
        prepared(source, tmp_path / "notes/letter.txt"),
    ):
        pass
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["letter.txt"]


def test_a_folder_of_another_checkpoint_is_refused(
    source: Checkpoint, checkpoint: MakeCheckpoint
) -> None:
    other = checkpoint("other", unet={"sample_size": 32})
    with pytest.raises(BadInput, match=r"config.json is of another checkpoint than .*choose a new"):
        missing_files(source, other)
    tuned = checkpoint("tuned", seed=1)  # alike in all but the values of its weights
    with pytest.raises(BadInput, match=r"model\.safetensors is of another checkpoint"):
        missing_files(source, tuned)
    assert not missing_files(source, checkpoint("same"))


def test_copies_report_their_bytes_and_their_hash(source: Checkpoint, tmp_path: Path) -> None:
    counts: list[int] = []
    missing = missing_files(source, tmp_path / "new")
    with copied(source, tmp_path / "new", missing, counts.append) as files:
        assert sum(counts) == sum(missing.values())
        assert [file.file for file in files] == list(source.files)
        for file in files:
            content = (tmp_path / "new" / file.file).read_bytes()
            assert file.sha256 in (None, hashlib.sha256(content).hexdigest())


def test_blocks_are_shared_where_the_file_system_can(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, origin: int) -> int:
        assert request == place.FICLONE
        os.sendfile(target, origin, 0, os.fstat(origin).st_size)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(place, "_copy", lambda *_: pytest.fail("copied byte by byte"))
    missing = missing_files(source, tmp_path / "new")
    with copied(source, tmp_path / "new", missing, lambda count: None) as files:
        assert {file.sha256 for file in files} == {None}
    assert not missing_files(source, tmp_path / "new")


def test_a_full_disk_is_told_before_copying(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(place, "_cloned", lambda *_: False)
    with (
        pytest.raises(BadInput, match=r"copying needs 0\.1 GB, 0\.0 GB are free"),
        prepared(source, tmp_path / "a/b"),
        copied(source, tmp_path / "a/b", missing_files(source, tmp_path / "a/b"), lambda n: None),
    ):
        pass
    assert not (tmp_path / "a").exists()


def test_what_fails_after_copying_takes_the_copies_away(source: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "output"
    missing = missing_files(source, output)
    kept = "model_index.json"
    output.mkdir()
    (output / kept).write_bytes((source.folder / kept).read_bytes())
    del missing[kept]
    with (
        pytest.raises(KeyboardInterrupt),
        copied(source, output, missing, lambda count: None),
    ):
        raise KeyboardInterrupt
    assert [str(p.relative_to(output)) for p in output.rglob("*")] == [kept]


def test_what_is_published_replaces_the_old_at_once(tmp_path: Path) -> None:
    publish(tmp_path, {"a.onnx": b"1", "b.onnx": b"2"}, b"first", set())
    publish(tmp_path, {"a.onnx": b"3"}, b"second", {"b.onnx"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "a.onnx": b"3",
        "manifest.json": b"second",
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_disk_that_fills_while_publishing_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    publish(tmp_path, {"a.onnx": b"1", "b.onnx": b"2"}, b"first", set())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((BadInput, OSError)):
        publish(tmp_path, {"a.onnx": b"3", "b.onnx": b"4"}, b"second", set())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_manifest_is_left_that_describes_other_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, {"a.onnx": b"1", "b.onnx": b"2"}, b"first", set())
    replace = Path.replace
    done: list[str] = []

    def broken(self: Path, target: Any) -> Path:
        if done:
            raise OSError(5, "Input/output error")
        done.append(str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="Input/output"):
        publish(tmp_path, {"a.onnx": b"3", "b.onnx": b"4"}, b"second", set())
    assert not (tmp_path / "manifest.json").exists()


def test_ctrl_c_waits_until_all_names_are_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Any) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    over = threading.Event()
    others = [threading.Thread(target=over.wait) for _ in range(3)]  # as libraries have them
    for thread in others:
        thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, {"a.onnx": b"3", "b.onnx": b"4"}, b"second", set())
    finally:
        over.set()
    assert {p.name for p in tmp_path.iterdir()} == {"a.onnx", "b.onnx", "manifest.json"}

"""Files are written whole or not at all, whatever ends the writer; locks hold and let go."""

import errno
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.engines.artefact import (
    locked,
    read_bytes,
    reading,
    remove_partials,
    sha256_of,
    writing,
)
from diffusion_rt.engines.errors import BadInput


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_was_there_stays_when_the_block_fails(
    tmp_path: Path, ending: type[BaseException]
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with writing(path) as file:
            file.write(b"new" * 1_000_000)
            raise ending

    with pytest.raises(ending):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_error_of_the_block_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), writing(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "elsewhere")


def _write_beyond_limit(path: Path, said: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    try:
        with writing(path) as file:
            for _ in range(8):
                file.write(bytes(1 << 20))
    except BadInput as error:
        said.write_text(str(error))


def test_a_file_that_does_not_fit_is_bad_input_and_leaves_nothing(tmp_path: Path) -> None:
    folder, said = tmp_path / "folder", tmp_path / "said"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"old")
    writer = multiprocessing.get_context("fork").Process(
        target=_write_beyond_limit, args=(folder / "a.bin", said)
    )
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert said.read_text().startswith(f"{folder}/a.bin cannot be written: the file is bigger")
    assert (folder / "a.bin").read_bytes() == b"old"
    assert names(folder) == ["a.bin"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_every_call_that_can_meet_a_full_disk_does_so_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", full)

    def write() -> None:
        with writing(path) as file:
            if call == "write":
                full()
            file.write(b"new")

    with pytest.raises(BadInput, match=r"a\.bin cannot be written: the disk is full"):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, words in [
        (tmp_path, "it is a folder; choose another name"),
        (tmp_path / "none" / "a", "there is no folder"),
        (tmp_path / "file" / "a", "not a directory"),
        (tmp_path / "pipe", "it is a device or a pipe"),
        (Path("/dev/null"), "it is a device or a pipe"),
        (tmp_path / ("x" * 300), "file name too long"),
        (tmp_path / "a\0b", "no valid file name"),
    ]:
        with pytest.raises(BadInput, match=words) as caught, writing(path):
            pytest.fail("the block must not run")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file", "pipe"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / "a").symlink_to("other")
    with writing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert not (tmp_path / "a").is_symlink()


def _write_for_ever(path: Path, atomic: bool) -> None:
    """Write a file whose bytes all equal a counter, again and again."""
    for count in range(1 << 30):
        block = bytes([count % 256]) * (1 << 18)
        if atomic:
            with writing(path) as file:
                for _ in range(4):
                    file.write(block)
        else:
            with path.open("wb") as file:
                for _ in range(4):
                    file.write(block)


def _broken_after_kills(folder: Path, kills: int, *, atomic: bool) -> int:
    """How many of `kills` writers, killed at a random moment, left a file that is not whole."""
    path = folder / "a.bin"
    fork = multiprocessing.get_context("fork")
    draw = random.Random(1)
    broken = 0
    for _ in range(kills):
        path.write_bytes(bytes(1 << 20))
        writer = fork.Process(target=_write_for_ever, args=(path, atomic))
        writer.start()
        time.sleep(draw.uniform(0.005, 0.03))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        content = path.read_bytes()
        broken += len(content) != 1 << 20 or len(set(content)) != 1
    return broken


def test_a_killed_writer_leaves_a_whole_file_and_a_partial_one_that_is_removed(
    tmp_path: Path,
) -> None:
    assert _broken_after_kills(tmp_path, 40, atomic=True) == 0
    left = [name for name in names(tmp_path) if name.endswith(".partial")]
    assert left  # else no writer was killed while it wrote
    assert remove_partials(tmp_path) == len(left)
    assert names(tmp_path) == ["a.bin"]


def test_the_kills_would_show_a_writer_that_is_not_atomic(tmp_path: Path) -> None:
    assert _broken_after_kills(tmp_path, 25, atomic=False) > 0


def test_a_partial_file_in_use_is_not_removed(tmp_path: Path) -> None:
    outside = tmp_path / "keep"
    outside.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".diffusion-rt-{'0' * 16}.partial").symlink_to(outside)
    (folder / f".diffusion-rt-{'1' * 16}.partial").mkdir()
    (folder / ".diffusion-rt-mine.partial").touch()
    with writing(folder / "a") as file:
        file.write(b"x")
        assert remove_partials(folder) == 0
    assert (folder / "a").read_bytes() == b"x"
    assert outside.read_bytes() == b"mine"
    assert remove_partials(tmp_path / "none") == 0


@given(content=st.binary(max_size=3000))
def test_hash_and_bytes(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("hash") / "a"
    path.write_bytes(content)
    heard: list[int] = []
    assert sha256_of(path, heard.append) == hashlib.sha256(content).hexdigest()
    assert sum(heard) == len(content)
    assert read_bytes(path, 3000) == content


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for path, words in [
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "a\0b", "no valid file name"),
        (tmp_path / ("x" * 300), "file name too long"),
    ]:
        with pytest.raises(BadInput, match=words), reading(path):
            pytest.fail("the block must not run")
    with pytest.raises(BadInput, match="a symbolic link"):
        read_bytes(tmp_path / "link", 10, follow_links=False)
    assert read_bytes(tmp_path / "link", 10) == b"12345"
    with pytest.raises(BadInput, match="5 bytes long, at most 4 are read"):
        read_bytes(tmp_path / "file", 4)


def _hold(folder: Path, ready: str) -> None:
    with locked(folder, "export"):
        Path(ready).touch()
        time.sleep(60)


def test_the_second_holder_is_told_who_the_first_is_and_a_killed_one_lets_go(
    tmp_path: Path,
) -> None:
    folder, ready = tmp_path / "folder", tmp_path / "ready"
    folder.mkdir()
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(folder, str(ready)))
    holder.start()
    while not ready.exists():
        time.sleep(0.005)
    with (
        pytest.raises(BadInput, match=rf'in use by .*"export", process {holder.pid}, since \d\d:'),
        locked(folder, "build"),
    ):
        pytest.fail("the block must not run")
    with locked(folder, "build", key="another"):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(folder, "build"):
        pass
    assert names(folder) == []


def test_a_lock_holds_between_threads_and_admits_one_at_a_time(tmp_path: Path) -> None:
    inside = most = entered = refused = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, entered, refused
        for _ in range(60):
            try:
                with locked(tmp_path, "test"):
                    with guard:
                        inside += 1
                        entered += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except BadInput:
                refused += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered + refused == 240
    assert names(tmp_path) == []


def test_a_lock_is_never_taken_through_a_link_or_on_a_strange_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    lock = tmp_path / ".diffusion-rt.lock"
    lock.symlink_to("victim")
    with pytest.raises(BadInput, match="cannot be locked"), locked(tmp_path, "x"):
        pytest.fail("the block must not run")
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(BadInput, match="not a regular file; remove it"), locked(tmp_path, "x"):
        pytest.fail("the block must not run")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    with pytest.raises(ValueError, match="is no lock key"), locked(tmp_path, "x", key="../a"):
        pytest.fail("the block must not run")
    with pytest.raises(BadInput, match="cannot be locked"), locked(tmp_path / "none", "x"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b'{"pid": "x"}', b'{"pid": 1e400}'])
def test_a_damaged_note_does_not_hide_the_lock(tmp_path: Path, note: bytes) -> None:
    with locked(tmp_path, "x"):
        (tmp_path / ".diffusion-rt.lock").write_bytes(note)
        with pytest.raises(BadInput, match="in use by another process"), locked(tmp_path, "y"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a file system without hard links."""

    def no_link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "a.bin"

    def write(content: bytes, appears: bytes | None) -> None:
        with writing(path, replace=False) as file:
            file.write(content)
            if appears is not None:
                path.write_bytes(appears)

    with pytest.raises(FileExistsError):
        write(b"late", appears=b"first")
    assert (path.read_bytes(), names(tmp_path)) == (b"first", ["a.bin"])
    path.unlink()
    write(b"alone", appears=None)
    assert (path.read_bytes(), names(tmp_path)) == (b"alone", ["a.bin"])
    assert path.stat().st_nlink == 1
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write(b"late", appears=None)
    assert names(tmp_path) == ["a.bin"]

"""Where things lie that can be made again, and who may write there."""

import os
from pathlib import Path

import pytest

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_it_is_made_for_its_user_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        folder = cache_folder("kernels")
    finally:
        os.umask(before)
    assert folder == home / "cache" / "diffusion-rt" / "kernels"
    assert folder.stat().st_mode & 0o077 == 0
    assert cache_folder("kernels") == folder
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("trt") == home / "home" / ".cache" / "diffusion-rt" / "trt"


@pytest.mark.parametrize("place", ["", "kernels"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_not_trusted(place: str, mode: int) -> None:
    folder = cache_folder("kernels")
    wrong = folder.parent / place
    wrong.chmod(mode)
    with pytest.raises(BadInput, match=f"{wrong} can be written by others: chmod go-w {wrong}"):
        cache_folder("kernels")


def test_a_folder_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_folder("kernels")
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner == 0:
        os.chown(folder, 12345, 12345)
    with pytest.raises(BadInput, match="belongs to another user; set XDG_CACHE_HOME"):
        cache_folder("kernels")


def test_a_file_in_the_way(home: Path) -> None:
    (home / "cache").write_text("")
    with pytest.raises(BadInput, match=r"cannot be made \(.*\); set XDG_CACHE_HOME"):
        cache_folder("kernels")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number that its list of users does not hold."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert cache_folder("kernels").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(BadInput, match=r"has no home for a cache; set XDG_CACHE_HOME"):
        cache_folder("kernels")

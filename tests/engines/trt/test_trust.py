"""Notes of trusted plans: asked for without a trace, written whole, kept from others' hands."""

from pathlib import Path

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.trt.trust import is_trusted, trust

ONE, OTHER = bytes(range(32)), bytes(32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_asking_writes_nothing(cache: Path) -> None:
    assert not is_trusted(ONE)
    assert not cache.exists()


def test_what_is_noted_is_trusted_until_the_note_is_gone(cache: Path) -> None:
    trust(ONE)
    trust(ONE)
    assert is_trusted(ONE)
    assert not is_trusted(OTHER)
    (note,) = (cache / "diffusion-rt" / "trusted").iterdir()
    assert note.name == ONE.hex()
    assert note.parent.stat().st_mode & 0o077 == 0
    note.unlink()
    assert not is_trusted(ONE)


def test_a_folder_is_no_note(cache: Path) -> None:
    trust(ONE)
    (cache / "diffusion-rt" / "trusted" / OTHER.hex()).mkdir()
    assert not is_trusted(OTHER)


def test_notes_that_others_could_write_count_for_nothing(cache: Path) -> None:
    trust(ONE)
    (cache / "diffusion-rt" / "trusted").chmod(0o777)
    with pytest.raises(BadInput, match="can be written by others: chmod go-w"):
        is_trusted(ONE)


def test_what_a_killed_writer_left_is_removed(cache: Path) -> None:
    trust(ONE)
    left = cache / "diffusion-rt" / "trusted" / ".diffusion-rt-0123456789abcdef.partial"
    left.write_bytes(b"")
    trust(OTHER)
    assert not left.exists()
    assert is_trusted(ONE)
    assert is_trusted(OTHER)

"""Pictures take nobody's place, and what cannot be written is said before the work."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.output import check_output, is_folder, names


def pictures(output: str, count: int) -> list[Path]:
    return list(islice(names(output, count), count))


def test_one_picture_has_the_name_given_and_several_are_numbered(tmp_path: Path) -> None:
    assert pictures(f"{tmp_path}/a.png", 1) == [tmp_path / "a.png"]
    several = [tmp_path / "a.b-1.PNG", tmp_path / "a.b-2.PNG", tmp_path / "a.b-3.PNG"]
    assert list(names(f"{tmp_path}/a.b.PNG", 3)) == several


def test_a_folder_is_filled_after_its_highest_number(tmp_path: Path) -> None:
    assert pictures(str(tmp_path), 2) == [tmp_path / "picture-1.png", tmp_path / "picture-2.png"]
    for name in ("picture-2.png", "picture-10.png", "picture-x.png", "other-99.png"):
        (tmp_path / name).touch()
    more = [tmp_path / "picture-11.png", tmp_path / "picture-12.png"]
    assert pictures(f"{tmp_path}/", 2) == more


def test_the_last_folder_of_a_path_with_a_slash_may_be_missing(tmp_path: Path) -> None:
    check_output(f"{tmp_path}/stars/", 1, overwrite=False)
    assert pictures(f"{tmp_path}/stars/", 1) == [tmp_path / "stars" / "picture-1.png"]
    assert is_folder(f"{tmp_path}/stars/")
    assert list(tmp_path.iterdir()) == []  # made when there is something to put there


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "ends in no .png, the one format there is; try a.png"),
        ("a", "try a.png"),
        ("-", "'-' ends in no .png, the one format there is; try picture.png"),
        (".png", "'.png' ends in no .png, the one format there is; try picture.png"),
        ("a\0.png", "NUL"),
        ("none/a.png", "there is no folder"),
        ("none/deeper/", "there is no folder"),
        ("file/", "there is no folder"),
        ("link.png/", "there is no folder"),
        ("file/a.png", "there is no folder"),
        ("here.png", "here.png exists; choose another name or add --overwrite"),
        ("link.png", "link.png is no regular file"),
        ("x" * 300 + ".png", "cannot be written: file name too long"),
        ("loop/a.png", "there is no folder"),
    ],
)
def test_a_place_that_will_not_do(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.png").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput) as caught:
        check_output(name, 1, overwrite=False)
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "here.png").read_text() == "mine"


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.png", "b-2.png"):
        (tmp_path / name).touch()
    check_output(f"{tmp_path}/a.png", 1, overwrite=True)
    check_output(f"{tmp_path}/a.png", 2, overwrite=False)
    with pytest.raises(BadInput, match=r"b-2\.png exists"):
        check_output(f"{tmp_path}/b.png", 3, overwrite=False)


@pytest.mark.parametrize("device", ["/dev/full", "/dev/null"])
def test_a_device_is_no_place_for_a_picture(device: str) -> None:
    with pytest.raises(BadInput, match=r"ends in no \.png"):
        check_output(device, 1, overwrite=True)


def test_a_folder_named_as_a_picture_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert pictures(f"{tmp_path}/a.png", 1) == [tmp_path / "a.png" / "picture-1.png"]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_is_found_before_the_work(tmp_path: Path) -> None:
    check_output(str(tmp_path), 1, overwrite=False)
    with files_no_larger_than(4096), pytest.raises(BadInput, match="file too large; choose anoth"):
        check_output(str(tmp_path), 1, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """In a child that is not root, which may write anywhere; it enters the folder before."""
    tmp_path.chmod(0o555)
    code = (
        "import os, tempfile\n"
        "from diffusion_rt.runtime.output import check_output\n"
        "os.getuid() or os.setuid(65534)\n"
        "check_output('./', 1, overwrite=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "BadInput: output ./ cannot be written: permission denied" in done.stderr
    assert list(tmp_path.iterdir()) == []

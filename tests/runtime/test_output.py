"""Pictures take nobody's place, and what cannot be written is said before the work."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.output import check_output, pictures


def names(output: str, count: int) -> list[str]:
    return [path.name for path in pictures(output, count)]


def test_one_picture_has_the_name_given_and_several_are_numbered(tmp_path: Path) -> None:
    assert pictures(f"{tmp_path}/a.png", 1) == [tmp_path / "a.png"]
    assert names(f"{tmp_path}/a.b.PNG", 3) == ["a.b-1.PNG", "a.b-2.PNG", "a.b-3.PNG"]


def test_a_folder_is_filled_after_its_highest_number(tmp_path: Path) -> None:
    assert names(str(tmp_path), 2) == ["picture-1.png", "picture-2.png"]
    for name in ("picture-2.png", "picture-10.png", "picture-x.png", "other-99.png"):
        (tmp_path / name).touch()
    assert names(f"{tmp_path}/", 2) == ["picture-11.png", "picture-12.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", "ends in no .png, the one format there is; try a.png"),
        ("a", "try a.png"),
        ("-", "ends in no .png"),
        ("a\0.png", "NUL"),
        ("none/a.png", "there is no folder"),
        ("none/", "there is no folder"),
        ("file/a.png", "there is no folder"),
        ("here.png", "here.png exists; choose another name or add --overwrite"),
        ("link.png", "link.png is no regular file"),
        ("x" * 300 + ".png", "cannot be written: file name too long"),
        ("loop/a.png", "there is no folder"),
    ],
)
def test_a_place_that_will_not_do(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput) as caught:
        check_output(f"{tmp_path}/{name}", 1, overwrite=False)
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
    assert "BadInput: --output ./ cannot be written: permission denied" in done.stderr
    assert list(tmp_path.iterdir()) == []

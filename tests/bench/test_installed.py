"""Installed sizes, of made-up distributions whose size is known."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench import installed, machine
from diffusion_rt.bench.installed import (
    OURS,
    checkpoint_size,
    closure,
    install,
    own_size,
    own_wheel,
    size_below,
    size_of,
    versions_in,
    versions_of_files,
)
from diffusion_rt.engines.errors import BadInput, Fault


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def distribution(site: Path, name: str, size: int, requires: Sequence[str] = ()) -> None:
    """Install a module of `size` bytes, and as much again that is listed and missing."""
    about = site / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", "Provides-Extra: more"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]))
    (site / f"{name}.py").write_bytes(bytes(size))
    (about / "RECORD").write_text(f"{name}.py,,\nmissing.pyc,,\n")


def test_what_is_needed_in_turn_is_counted_once(site: Path) -> None:
    distribution(site, "top", 1, ["Middle-One>=1", "other; python_version < '3'"])
    distribution(site, "middle-one", 10, ["low", "top"])
    distribution(site, "low", 100)
    distribution(site, "apart", 1000)
    assert closure(["top", "low"]) == ["low", "middle-one", "top"]
    assert size_of(closure(["top"])) == 111


def test_an_extra_brings_its_own(site: Path) -> None:
    distribution(site, "top", 1, ["low; extra == 'more'", "mid"])
    distribution(site, "mid", 10, ["top[more]"])
    distribution(site, "low", 100)
    assert closure(["low"]) == ["low"]
    assert closure(["mid"]) == ["low", "mid", "top"]


def test_what_is_not_installed_is_named(site: Path) -> None:
    distribution(site, "top", 1, ["nowhere"])
    with pytest.raises(BadInput, match=r"^nowhere is not installed"):
        closure(["top"])


def test_what_it_takes_to_draw_holds_no_torch() -> None:
    found = closure(OURS)
    assert "numpy" in found
    assert not {"torch", "diffusers", "transformers"} & set(found)


def test_our_own_size_is_that_of_all_that_pip_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held to the list of files that pip itself keeps."""

    def keep(wheel: Path, site: Path) -> None:
        install(wheel, tmp_path / "site")
        site.symlink_to(tmp_path / "site")

    monkeypatch.setattr(installed, "install", keep)
    found = own_size()
    (about,) = (tmp_path / "site").glob("*.dist-info")
    with (about / "RECORD").open(newline="") as file:
        listed = [Path(line[0]) for line in csv.reader(file)]
    kinds = {path.suffix for path in listed}
    assert {".py", ".pyc", ".cu", ".onnx", ".safetensors"} <= kinds
    assert not any("tests" in path.parts for path in listed)
    # A program lies in the folder of scripts, wherever pip says that this is.
    sizes = {
        path: (tmp_path / "site" / path).stat().st_size for path in listed if path.parts[0] != ".."
    }
    assert (
        found - sum(sizes.values()) == (tmp_path / "site" / "bin" / "diffusion-rt").stat().st_size
    )
    assert versions_in(tmp_path / "site").keys() == {"diffusion-rt"}


def test_what_pip_cannot_do_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(Fault, match=r"^pip install: "):
        install(tmp_path / "a-1-py3-none-any.whl", tmp_path / "site")


def test_outside_of_a_checkout_what_is_installed_counts(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(site, "diffusion-rt", 12)
    monkeypatch.setattr(machine, "checkout", lambda: None)
    assert own_size() == 12
    with pytest.raises(BadInput, match="this is no checkout"):
        own_wheel()


def test_a_checkpoint_is_what_export_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name, size in (("unet/a.safetensors", 100), ("b.json", 10), ("unet_step.float32.onnx", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "manifest.json").write_bytes(bytes(5))
    assert checkpoint_size(tmp_path) == 110
    with pytest.raises(BadInput, match="nothing lies there"):
        size_below(tmp_path / "nowhere")


def test_downloads_are_known_by_the_names_of_their_files(tmp_path: Path) -> None:
    for name in ("One_Two-1.5-py3-none-any.whl", "b-2.0.post1.tar.gz"):
        (tmp_path / name).write_bytes(bytes(30))
    assert versions_of_files(tmp_path) == {"one-two": "1.5", "b": "2.0.post1"}
    (tmp_path / "page.html").touch()
    with pytest.raises(BadInput, match=r"page\.html: no file of a package"):
        versions_of_files(tmp_path)
    with pytest.raises(BadInput, match="no files of packages lie there"):
        versions_of_files(tmp_path / "nowhere")

"""Installed sizes, of made-up distributions whose size is known."""

import csv
import json
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import pytest

from diffusion_rt.bench import installed, machine
from diffusion_rt.bench.installed import (
    OURS,
    Downloads,
    checkpoint_size,
    closure,
    downloads,
    install,
    own_size,
    own_wheel,
    size_below,
    size_of,
    versions_in,
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


def report(folder: Path, places: dict[str, str]) -> Path:
    path = folder / "report.json"
    entries = [
        {"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": url}}
        for name, url in places.items()
    ]
    path.write_text(json.dumps({"install": entries}))
    return path


class Answer(BytesIO):
    def __init__(self, length: str | None) -> None:
        super().__init__()
        self.headers = {} if length is None else {"Content-Length": length}


def test_downloads_are_asked_for_their_length_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one two.whl").write_bytes(bytes(30))
    asked: list[tuple[str, str]] = []

    def urlopen(request: Request, timeout: float) -> Answer:
        asked.append((request.get_method(), request.full_url))
        return Answer("1000000000")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    path = (tmp_path / "one two.whl").as_uri()
    found = downloads(report(tmp_path, {"One_Two": path, "b": "https://example.com/b-1.whl"}))
    assert found == Downloads({"b": "1.0", "one-two": "1.0"}, 1_000_000_030)
    assert asked == [("HEAD", "https://example.com/b-1.whl")]


@pytest.mark.parametrize("length", [None, "many", OSError("no route")])
def test_a_size_that_cannot_be_had_is_a_fault(
    length: str | OSError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(request: Request, timeout: float) -> Answer:
        if isinstance(length, OSError):
            raise length
        return Answer(length)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(Fault, match=r"^b-1\.whl: its (size|server)"):
        downloads(report(tmp_path, {"b": "https://example.com/b-1.whl"}))


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"install": []}', '{"install": [1]}', '{"install": [{"metadata": {}}]}', "{"],
)
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"report\.json"):
        downloads(path)
    other = report(tmp_path, {"b": "http://example.com/b.whl"})
    with pytest.raises(BadInput, match="without a name or a place"):
        downloads(other)

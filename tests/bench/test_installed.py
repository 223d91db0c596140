"""Installed sizes, of made-up distributions whose size is known."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import pytest

from diffusion_rt.bench import installed
from diffusion_rt.bench.installed import OURS, Downloads, closure, downloads, own_size, size_of
from diffusion_rt.bench.startup import records_of_downloads
from diffusion_rt.engines.errors import BadInput, Fault
from support.races import origin


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
    assert 1 << 18 < own_size() < 64 << 20


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


def test_the_engine_is_known_by_what_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ({"cuda-bindings": "13.5", "rich": "1"}, 100), ({"torch": "2.15"}, 1 << 40)
    sizes = itertools.starmap(Downloads, both)
    monkeypatch.setattr(installed, "downloads", lambda path: next(sizes))
    monkeypatch.setattr(installed, "own_size", lambda: 28)
    here = replace(origin("startup"), versions={"diffusion-rt": "0.1", "torch": "2.0+cpu"})
    ours, theirs, ratio = records_of_downloads(here, tmp_path, tmp_path)
    assert ours.versions == {"diffusion-rt": "0.1", "torch": "2.15", "cuda-bindings": "13.5"}
    assert ours.setting == {"torch": "cuda", "engine": "native"}
    assert ours.spread is not None
    assert ratio.spread is not None
    assert (ours.spread.p50, ratio.spread.p50) == (128, 2**33)
    assert theirs.contender == "diffusers"

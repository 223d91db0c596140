"""Installed sizes, of made-up distributions whose size is known."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench.installed import OURS, closure, own_size, size_of
from diffusion_rt.engines.errors import BadInput


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

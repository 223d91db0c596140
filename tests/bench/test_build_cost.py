"""What a build costs, of a build that is a script; and what refuses to be one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench import build_cost, cli
from diffusion_rt.bench.launch import Ran
from diffusion_rt.bench.records import read
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.runtime.pipeline import SHIPPED
from support.races import origin

FILES = [{"name": "unet_step", "bytes": 5}, {"name": "vae_decoder", "bytes": 7}]


class Builder:
    """Stands for `diffusion-rt build`: slow the first time in a cache, quick the second."""

    def __init__(self, last: Any) -> None:
        self.commands: list[list[str]] = []
        self.said = "a library's word\n" + json.dumps(last, indent=1)

    def __call__(self, command: Sequence[str], *, timeout: float, more: Mapping[str, str]) -> Ran:
        self.commands.append(list(command))
        mark = Path(more["XDG_CACHE_HOME"], "built")
        seconds = 0.5 if mark.exists() else 60.0
        assert mark.exists() != ("--force" in command)
        mark.touch()
        return Ran(started_at=0, seconds=seconds, peak_rss=11, said=self.said)


def test_a_build_is_measured_from_nothing_and_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder({"files": FILES, "peak_device": 9})
    monkeypatch.setattr(build_cost, "launch", builder)
    model = SHIPPED.resolve()
    words = ["--model", str(model), "--engine", "trt", "--buckets", "64x64", "--repeats", "2"]
    assert cli.main(["build", *words, "--output", str(tmp_path)]) == 0
    assert len(builder.commands) == 4
    assert builder.commands[0][3:] == [
        *("diffusion_rt", "build", str(model), "--engine", "trt", "--format", "json"),
        *("--buckets", "64x64", "--force"),
    ]
    found = {record.measure: record for record in read(tmp_path)}
    middles = {name: record.spread and record.spread.p50 for name, record in found.items()}
    assert middles == {"build": 60.0, "build-again": 0.5, "peak-rss": 11, "written": 12}
    assert found["build"].peak_device == 9
    assert found["build"].setting == {"model": "shapes-xl", "engine": "trt", "buckets": "64x64"}
    assert str(model) not in found["build"].command


@pytest.mark.parametrize("last", ["words", {}, {"files": [{"bytes": "5"}]}])
def test_a_build_that_does_not_say_what_it_built_is_a_fault(
    last: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build_cost, "launch", Builder(last))
    with pytest.raises(Fault, match="says nothing of its files"):
        build_cost.builds(tmp_path, "native", [], 1, lambda text: None)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(BadInput, match="--engine ort: one of trt, native is built"):
        cli.main(["build", "--engine", "ort"])


def test_without_a_peak_on_the_device_none_is_told() -> None:
    builds = build_cost.Builds([1.0], [0.1], [5], [6])
    assert build_cost.records_of(origin("build"), builds, {})[0].peak_device is None

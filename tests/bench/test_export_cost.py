"""What an export leaves is counted, and what it stood beside is not."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, export_cost
from diffusion_rt.bench.architectures import SDXL_SMALL
from diffusion_rt.bench.checkpoint import make_checkpoint
from diffusion_rt.bench.launch import Ran
from diffusion_rt.bench.records import read
from diffusion_rt.engines.errors import BadInput
from support.races import origin


def test_only_new_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "weights.safetensors"
    weights.write_bytes(bytes(1000))

    def launch(command: Sequence[str]) -> Ran:
        assert command[-4:] == [str(tmp_path), "--no-check", "--format", "json"]
        assert not list(tmp_path.glob("*.onnx")), "an export before would be found up to date"
        (tmp_path / "unet_step.float16.onnx").write_bytes(bytes(20))
        (tmp_path / "manifest.json").write_bytes(bytes(3))
        return Ran(started_at=0, seconds=7, peak_rss=11)

    monkeypatch.setattr(export_cost, "launch", launch)
    found = export_cost.exports(tmp_path, 2, lambda text: None)
    assert found.written == [23, 23]
    seconds, memory, written = export_cost.records_of(origin("export"), found, {"model": "m"})
    assert seconds.spread is not None
    assert memory.spread is not None
    assert written.spread is not None
    assert (seconds.spread.p50, memory.spread.p50, written.spread.p50) == (7, 11, 23)
    assert weights.stat().st_size == 1000


def test_a_checkpoint_of_somebodys_own_is_measured_where_it_lies_and_never_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    count = make_checkpoint(folder, SDXL_SMALL)
    monkeypatch.setattr(export_cost, "exports", lambda *_: export_cost.Exports([1], [2], [3]))
    words = ["--model", str(folder), "--output", str(tmp_path)]
    assert cli.main(["export", *words]) == 0
    record, *_ = read(tmp_path)
    assert record.setting == {"model": "mine", "weights": count}
    assert record.command == "diffusion-rt bench export --model mine --repeats 1"
    graph = folder / "unet_step.float32.onnx"
    graph.touch()
    with pytest.raises(BadInput, match=r"unet_step\.float32\.onnx: exported already"):
        cli.main(["export", *words])
    assert graph.exists()

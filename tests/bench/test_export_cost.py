"""What an export leaves is counted, and what it stood beside is not."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench import export_cost
from diffusion_rt.bench.launch import Ran
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

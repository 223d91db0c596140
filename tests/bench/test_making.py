"""The sub-commands that make something: what fits together, and what is never undone."""

from pathlib import Path

import pytest

from diffusion_rt.bench import cli, export_cost
from diffusion_rt.bench.architectures import SDXL_SMALL
from diffusion_rt.bench.checkpoint import make_checkpoint
from diffusion_rt.bench.records import read
from diffusion_rt.engines.errors import BadInput


def test_what_checkpoint_writes_is_what_graphs_takes_the_weights_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Folder:
        def __init__(self, path: Path) -> None:
            self.path = path

    monkeypatch.setattr("diffusion_rt.bench.bare.open_model", Folder)
    full, bare = tmp_path / "full", tmp_path / "bare"
    assert cli.main(["checkpoint", "--architecture", "sdxl-small", "--keep", str(full)]) == 0
    assert cli.main(["graphs", "--model", str(full), "--keep", str(bare)]) == 0
    assert list(bare.rglob("*.header"))


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

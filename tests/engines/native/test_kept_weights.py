"""Packed weights of a model folder: built, used, and left alone where they are no good."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.cache_folder import cache_path
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.kept import kept_name
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import build as building
from diffusion_rt.engines.native import packed as packed_files
from diffusion_rt.engines.native.arrangement import Arrangement
from diffusion_rt.engines.native.build import Built, packed
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.kept_weights import pack, whole
from diffusion_rt.engines.native.needed import runs, target_of
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.engines.spec import Precision
from support.device_graphs import simulated_gpu
from support.native_weights import bytes_of

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
SIZES = {"n": 2, "batch": 2, "tokens": 32, "height": 4, "width": 4}
GRAPH = "unet_prompt"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_files, "PIECE", 1 << 18)
    shutil.copytree(SHIPPED, tmp_path / "model")
    return open_model(tmp_path / "model")


def built(
    model: ModelFolder, *, force: bool = False, precision: Precision = "float16", **more: Any
) -> list[Built]:
    progress = more.get("progress", lambda stage, done, total: None)
    return packed(target_of(model, precision), force=force, progress=progress)


class Opened:
    """The graphs of a model on a simulator; notes what is arranged from the checkpoint."""

    def __init__(self, model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = simulated_gpu()
        self.graphs = NativeGraphs(model, self.gpu, precision="float16")
        self.arranged = 0
        plain = Weights.stream_from

        def counted(weights: Weights, folder: Path, **how: Any) -> Weights:
            self.arranged += 1
            return plain(weights, folder, **how)

        monkeypatch.setattr(Weights, "stream_from", counted)

    def bytes(self, graph: str = GRAPH) -> NDArray[np.uint8]:
        """What lies on the device once the weights of a graph were brought there."""
        plan = self.graphs.loaded(graph).planned(SIZES).plan
        weights = self.graphs.bring_weights(plan)
        found = bytes_of(self.gpu.device, self.gpu.device.stream(), weights)
        weights.close()
        return found


@pytest.fixture
def opened(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    made = Opened(model, monkeypatch)
    yield made
    made.graphs.close()


def file_of(model: ModelFolder, graph: str = GRAPH) -> Path:
    return model.path / "engines" / "native" / f"{graph}-float16.weights"


def test_every_graph_is_packed_and_none_is_arranged(model: ModelFolder, opened: Opened) -> None:
    heard: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        heard[stage] = done, total

    found = built(model, progress=progress)
    graphs = list(dict.fromkeys(graph for graph, _ in runs(target_of(model, "float16"))))
    assert [made.name for made in found] == [f"{graph} weights" for graph in graphs]
    assert [made.path for made in found] == [file_of(model, graph) for graph in graphs]
    assert all(made.nbytes == made.path.stat().st_size and not made.kept for made in found)
    assert heard.keys() == {"verify", *(f"pack the weights of {graph}" for graph in graphs)}
    assert all(done == total > 0 for done, total in heard.values())
    with_files = [opened.bytes(graph) for graph in graphs]
    assert opened.arranged == 0
    shutil.rmtree(model.path / "engines")
    for graph, wanted in zip(graphs, with_files, strict=True):
        np.testing.assert_array_equal(opened.bytes(graph), wanted)
    assert opened.arranged == len(graphs)


def test_a_location_may_be_spelt_in_another_way(model: ModelFolder, opened: Opened) -> None:
    """As in graphs that name `./unet/…`, which the manifest does not."""
    plan = opened.graphs.loaded(GRAPH).planned(SIZES).plan
    weights = []
    for weight in plan.weights.values():
        sources = (replace(one, location=f"./{one.location}") for one in weight.sources)
        weights.append(replace(weight, sources=tuple(sources)))
    arrangement = Arrangement(weights, plan.constants)
    path = pack(model, GRAPH, plan.dtype, arrangement)
    assert whole(model, GRAPH, plan.dtype, arrangement) == path


def test_a_file_that_is_whole_is_kept(model: ModelFolder) -> None:
    assert not any(made.kept for made in built(model))
    before = {path: path.stat().st_mtime_ns for path in file_of(model).parent.iterdir()}
    assert len(before) == 6
    assert all(made.kept for made in built(model))
    assert {path: path.stat().st_mtime_ns for path in file_of(model).parent.iterdir()} == before
    damage(file_of(model))
    assert [made.name for made in built(model) if not made.kept] == [f"{GRAPH} weights"]
    assert all(made.kept for made in built(model))
    assert not any(made.kept for made in built(model, force=True))


def damage(path: Path, place: int = -1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("wrong", ["last piece", "head", "short", "foreign", "link"])
def test_a_file_that_is_no_good_is_not_used_and_said_once(
    model: ModelFolder, opened: Opened, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    wanted = opened.bytes()
    built(model)
    path = file_of(model)
    if wrong == "last piece":  # heard of when most of it is on the device
        damage(path)
    elif wrong == "head":
        damage(path, 90)
    elif wrong == "short":
        path.write_bytes(path.read_bytes()[:-256])
    elif wrong == "foreign":
        path.write_bytes(file_of(model, "unet_timestep").read_bytes())
    else:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    for times in (2, 3):
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(opened.bytes(), wanted)
        assert opened.arranged == times
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(str(path))
    assert said.endswith("by diffusion-rt build --engine native --pack-weights")


def test_the_file_of_a_checkpoint_that_was_replaced(
    model: ModelFolder, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    built(model)
    files = dict(model.manifest.files)
    name = "unet/diffusion_pytorch_model.safetensors"
    files[name] = replace(files[name], sha256="0" * 64)
    other = replace(model, manifest=replace(model.manifest, files=files), sha256="1" * 64)
    graphs = NativeGraphs(other, opened.gpu, precision="float16")
    graphs.bring_weights(graphs.loaded(GRAPH).planned(SIZES).plan).close()
    assert opened.arranged == 1
    assert "of another checkpoint, export or diffusion-rt" in caplog.text


def test_a_folder_that_cannot_be_written_has_them_in_the_cache(
    model: ModelFolder, opened: Opened
) -> None:
    wanted = opened.bytes()
    (model.path / "engines").write_text("in the way")
    earlier = replace(model, sha256="0" * 64)
    cache = cache_path("native")
    assert {made.path.parent for made in built(earlier)} == {cache}
    first = set(cache.iterdir())
    assert len(first) == 6
    assert file_of(model).name in {p.name.split("-", 2)[2] for p in first}
    built(model)
    assert len(set(cache.iterdir())) == 6, "those of the earlier manifest are gone"
    assert (cache / kept_name(model, f"{GRAPH}-float16")).is_file()
    np.testing.assert_array_equal(opened.bytes(), wanted)
    assert opened.arranged == 1


def test_a_checkpoint_that_is_not_the_manifests_is_not_packed(model: ModelFolder) -> None:
    path = model.path / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1  # the same size, the same table
    path.write_bytes(content)
    with pytest.raises(BadInput, match="was changed since it was exported"):
        built(model)
    assert not (model.path / "engines").exists()


def test_it_is_asked_for_and_wants_no_gpu(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusion_rt.__main__ import main

    def compiled(target: Any, images: Any, arch: int, progress: Any) -> Built:
        return Built(f"kernels for sm_{arch}", model.path, 1, 0.0, kept=True)

    monkeypatch.setattr(building, "_compiled", compiled)
    command = ["build", str(model.path), "--engine", "native", "--archs", "90"]
    assert main(command) == 0
    assert not (model.path / "engines").exists()
    assert main([*command, "--pack-weights", "--format", "json"]) == 0
    out = capsys.readouterr().out
    files = json.loads(out[out.index("{") :])["files"]
    assert len(files) == 7
    made = {file["name"]: file for file in files[1:]}
    assert made["unet_step weights"]["bytes"] == file_of(model, "unet_step").stat().st_size
    assert not made["unet_step weights"]["kept"]

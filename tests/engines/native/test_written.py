"""Tensors that are written, as a LoRA does: they outlive the weights, and can be taken back."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.build import packed
from diffusion_rt.engines.native.engine import NativeEngine
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.needed import target_of
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.engines.safetensors_file import read_table
from diffusion_rt.engines.spec import Precision
from support.device_graphs import simulated_gpu
from support.native_weights import bytes_of

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
GRAPH = "unet_timestep"
NAME = "down_blocks.0.resnets.0.time_emb_proj"
UNET = "unet/diffusion_pytorch_model.safetensors"


class Bench:
    """Graphs on a simulator, of which one is bound and let go."""

    def __init__(self, model: ModelFolder) -> None:
        self.model, self.gpu = model, simulated_gpu()
        self.graphs = NativeGraphs(model, self.gpu, precision="float32")

    def bind(self, precision: Precision | None = None) -> NativeEngine:
        """An engine with its weights on the device."""
        engine = self.graphs.open(GRAPH, precision)
        engine.bind(zeros(self.gpu, engine))
        return engine

    def bytes(self, precision: Precision | None = None) -> NDArray[np.uint8]:
        """All weights that are on the device."""
        weights = self.graphs.loaded(GRAPH, precision).weights
        return bytes_of(self.gpu.device, self.gpu.device.stream(), weights)


def zeros(gpu: Gpu, engine: NativeEngine) -> dict[str, DeviceArray]:
    stream, places = gpu.device.stream(), {}
    for name, spec in {**engine.inputs, **engine.outputs}.items():
        place = DeviceArray(0, spec.resolve({"n": 2}), spec.dtype)
        buffer = gpu.device.allocate(place.nbytes)
        stream.fill(buffer, 0)
        places[name] = replace(place, address=buffer.address)
    stream.synchronize()
    return places


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(open_model(SHIPPED))
    yield made
    made.graphs.close()


def values(name: str, seed: int = 0) -> NDArray[np.float32]:
    """Others for a tensor of the UNet."""
    shape = read_table(SHIPPED / UNET).tensors[name].shape
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("from_packed", [False, True])
def test_what_was_written_outlives_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_packed: bool
) -> None:
    model = open_model(SHIPPED)
    if from_packed:
        shutil.copytree(SHIPPED, tmp_path / "m")
        model = open_model(tmp_path / "m")
        packed(target_of(model, "float32"), force=False, progress=lambda *told: None)

        def never(self: Weights, folder: Path, **how: Any) -> Weights:
            raise AssertionError("read from the checkpoint")

        monkeypatch.setattr(Weights, "stream_from", never)
    bench = Bench(model)
    engine = bench.bind()
    first = bench.bytes()
    weight, bias = values(f"{NAME}.weight"), values(f"{NAME}.bias")
    bench.graphs.write("unet", f"{NAME}.weight", weight)
    once = bench.bytes()
    bench.graphs.write("unet", f"{NAME}.bias", bias)
    both = bench.bytes()
    assert (first != once).any()
    assert (once != both).any()
    weight[:] = 0  # a copy was kept
    engine.close()  # the weights go
    assert bench.graphs.loaded(GRAPH).there is None
    engine = bench.bind()
    np.testing.assert_array_equal(bench.bytes(), both)
    bench.graphs.restore("unet", f"{NAME}.bias")
    np.testing.assert_array_equal(bench.bytes(), once)
    engine.close()
    bench.graphs.restore("unet", f"{NAME}.weight")  # while there is nothing on the device
    bench.graphs.restore("unet", f"{NAME}.weight")
    bench.bind()
    np.testing.assert_array_equal(bench.bytes(), first)
    bench.graphs.close()


def test_what_is_written_before_anything_is_there(bench: Bench) -> None:
    bench.graphs.write("unet", f"{NAME}.bias", np.full(values(f"{NAME}.bias").shape, 7, np.float16))
    bench.bind()
    written = bench.bytes()
    bench.graphs.restore("unet", f"{NAME}.bias")
    assert np.count_nonzero(written != bench.bytes()) > 64
    offset = next(
        place
        for weight, place in bench.graphs.loaded(GRAPH).weights.arrangement.tensors[f"{NAME}.bias"]
    )
    np.testing.assert_array_equal(written[offset : offset + 64 * 4].view(np.float32), 7)


def test_every_precision_that_is_there_is_written(bench: Bench) -> None:
    bench.bind()
    bench.bind("float16")
    both: tuple[Precision, ...] = ("float32", "float16")
    before = {p: bench.bytes(p) for p in both}
    name = f"{NAME}.weight"
    bench.graphs.write("unet", name, values(name))
    after = {p: bench.bytes(p) for p in both}
    assert all((before[p] != after[p]).any() for p in before)
    # Too large for one of them: neither is changed.
    with pytest.raises(BadInput, match="too large for float16"):
        bench.graphs.write("unet", name, np.full_like(values(name), 1e6))
    for precision, wanted in after.items():
        np.testing.assert_array_equal(bench.bytes(precision), wanted)
    bench.graphs.restore("unet", name)
    with pytest.raises(BadInput, match="too large for float16"):
        bench.graphs.write("unet", name, np.full_like(values(name), 1e6))
    for precision, wanted in before.items():
        np.testing.assert_array_equal(bench.bytes(precision), wanted)


def test_text_encoders_share_names(bench: Bench) -> None:
    """The folder says whose tensor it is."""
    name = "text_model.encoder.layers.0.layer_norm1.bias"
    table = read_table(SHIPPED / "text_encoder_2" / "model.safetensors")
    shape = table.tensors[name].shape
    sizes = {"batch": 1, "tokens": 32}

    def brought(graph: str) -> NDArray[np.uint8]:
        plan = bench.graphs.loaded(graph).planned(sizes).plan
        weights = bench.graphs.bring_weights(plan)
        found = bytes_of(bench.gpu.device, bench.gpu.device.stream(), weights)
        weights.close()
        return found

    before = {graph: brought(graph) for graph in ("text_encoder", "text_encoder_2")}
    bench.graphs.write("text_encoder_2", name, np.full(shape, 3, np.float32))
    np.testing.assert_array_equal(brought("text_encoder"), before["text_encoder"])
    assert (brought("text_encoder_2") != before["text_encoder_2"]).any()


@pytest.mark.parametrize(
    ("component", "name", "given", "said"),
    [
        ("unet", f"{NAME}.wight", (64,), f"no graph has a weight .* did you mean {NAME}.weight"),
        ("vae", f"{NAME}.bias", (64,), "wants one of|did you mean"),
        ("nowhere", f"{NAME}.bias", (64,), "wants one of text_encoder, text_encoder_2, unet, vae"),
        ("unet", f"{NAME}.bias", (65,), r"float32 \[65\], wants float32 or float16 \[64\]"),
    ],
)
def test_what_cannot_be_written(
    bench: Bench, component: str, name: str, given: tuple[int, ...], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        bench.graphs.write(component, name, np.zeros(given, np.float32))
    if given == (64,):
        with pytest.raises(BadInput, match="no graph has a weight"):
            bench.graphs.restore(component, name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_before_anything_is_there(
    bench: Bench, bad: float
) -> None:
    given = values(f"{NAME}.bias")
    given[3] = bad
    with pytest.raises(BadInput, match="the values given have NaN"):
        bench.graphs.write("unet", f"{NAME}.bias", given)


def test_a_checkpoint_that_is_gone_leaves_what_was_written(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "m")
    bench = Bench(open_model(tmp_path / "m"))
    engine = bench.bind()
    bench.graphs.write("unet", f"{NAME}.bias", values(f"{NAME}.bias"))
    written = bench.bytes()
    (tmp_path / "m" / UNET).rename(tmp_path / "away")
    with pytest.raises(BadInput, match="no such file"):
        bench.graphs.restore("unet", f"{NAME}.bias")
    np.testing.assert_array_equal(bench.bytes(), written)
    (tmp_path / "away").rename(tmp_path / "m" / UNET)
    engine.close()
    bench.bind()
    np.testing.assert_array_equal(bench.bytes(), written)
    bench.graphs.close()

"""What ONNX Runtime makes of a graph's weights: right results, and the memory they take."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from diffusion_rt.engines.manifest import GraphVariant, read_manifest, write_manifest
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.ort import backend as backend_module
from diffusion_rt.engines.ort.backend import LARGE, OrtBackend, Weights, choose_weights
from diffusion_rt.engines.spec import Precision, TensorSpec
from support.model_folders import (
    SmallModel,
    external_weights,
    make_model_folder,
    manifest_of,
    model_of,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return make_model_folder(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return make_model_folder(tmp_path_factory.mktemp("half") / "model", stored="float16")


def _stored(dtype: str, gigabytes: float, offset: int = 0) -> ExternalTensor:
    length = int(gigabytes * LARGE)
    elements = length // (2 if dtype.endswith("16") else 4)
    return ExternalTensor("w", dtype, (elements,), "w.safetensors", offset, length)


SMALL, MAPPED, CAST = (
    Weights(folded=True, packed=True),
    Weights(folded=False, packed=False),
    Weights(folded=False, packed=True),
)


@pytest.mark.parametrize(
    ("stored", "precision", "weights"),
    [
        ([], "float32", SMALL),
        ([_stored("float32", 1)], "float32", MAPPED),
        ([_stored("float32", 0.99)], "float32", SMALL),
        ([_stored("float32", 0.6)] * 2, "float32", SMALL),  # one tensor, used twice
        ([_stored("float32", 0.6), _stored("float32", 0.6, 9)], "float32", MAPPED),
        ([_stored("float16", 0.5)], "float32", CAST),
        ([_stored("float16", 0.49)], "float32", SMALL),
        ([_stored("float16", 1)], "float16", MAPPED),
        ([_stored("float32", 1)], "float16", SMALL),
        ([_stored("float32", 1), _stored("bfloat16", 0.01, 9)], "float32", CAST),
        ([_stored("float32", 1), _stored("int64", 0.01, 9)], "float32", MAPPED),
    ],
)
def test_what_is_made_of_the_weights(
    stored: list[ExternalTensor], precision: Precision, weights: Weights
) -> None:
    assert choose_weights(stored, precision) == weights


@pytest.mark.parametrize("model", ["small", "half"])
def test_large_weights_give_the_same_result(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for limit in (LARGE, 1):
        monkeypatch.setattr(backend_module, "LARGE", limit)
        folder = open_model(request.getfixturevalue(model).path)
        engine = OrtBackend(folder, threads=1).load("unet_step")
        y = np.empty((3, 50, 16), np.float32)
        engine.bind({"x": np.linspace(-1, 1, 1200, dtype=np.float32).reshape(3, 50, 8), "y": y})
        engine.enqueue()
        results.append(y)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6, atol=1e-7)


def big_model(folder: Path, stored: str) -> ModelFolder:
    """A folder whose unet_step is x · w, with 64 MB of float32 weights."""
    make_model_folder(folder)
    width = 4096
    weight = np.zeros((width, width), stored)
    save_file({"weight": weight}, folder / "unet" / "big.safetensors")
    tensors = external_weights(folder, "unet/big.safetensors")
    x = onnx.helper.make_tensor_value_info("x", 1, ["batch", width])
    y = onnx.helper.make_tensor_value_info("y", 1, ["batch", width])
    nodes = [onnx.helper.make_node("Transpose", ["cast"], ["t"], perm=[1, 0])]
    nodes.append(onnx.helper.make_node("MatMul", ["x", "t"], ["y"]))
    nodes.insert(0, onnx.helper.make_node("Cast", ["weight"], ["cast"], to=1))
    (folder / "unet_step.float32.onnx").write_bytes(
        model_of(nodes, tensors, [x], [y]).SerializeToString()
    )
    graphs = dict(read_manifest(folder).graphs)
    graphs["unet_step"] = {
        "float32": GraphVariant(
            file="unet_step.float32.onnx",
            inputs=(TensorSpec("x", "float32", ("batch", width)),),
            outputs=(TensorSpec("y", "float32", ("batch", width)),),
        )
    }
    write_manifest(folder, manifest_of(folder, graphs))
    return open_model(folder)


def _resident() -> dict[str, float]:
    """This process's private and file-backed memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":") for line in lines)
    return {
        "anon": int(found["RssAnon"].split()[0]) / 1024,
        "file": int(found["RssFile"].split()[0]) / 1024,
    }


def _measure(folder: ModelFolder, said: Path) -> None:
    backend = OrtBackend(folder, threads=1)
    backend.load("vae_decoder").close()  # libraries are loaded and warm
    before = _resident()
    engine = backend.load("unet_step")
    x = np.zeros((64, 4096), np.float32)
    engine.bind({"x": x, "y": np.zeros_like(x)})
    engine.enqueue()
    loaded = _resident()
    engine.close()
    closed = _resident()
    said.write_text(
        json.dumps(
            {
                "anon": loaded["anon"] - before["anon"],
                "file": loaded["file"] - before["file"],
                "kept": closed["anon"] - before["anon"],
            }
        )
    )


@pytest.mark.parametrize(
    ("stored", "large", "anon", "file"),
    [
        ("float32", True, (0, 20), (60, 70)),  # read where it lies
        ("float32", False, (60, 90), (0, 70)),  # a packed copy
        ("float16", True, (60, 90), (0, 40)),  # a float32 copy in memory
        ("float16", False, (60, 90), (0, 40)),
    ],
)
def test_the_memory_that_weights_take(
    stored: str,
    large: bool,
    anon: tuple[int, int],
    file: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "LARGE", 1 if large else 1 << 40)
    folder = big_model(tmp_path / "model", stored)
    said = tmp_path / "said"
    runner = multiprocessing.get_context("fork").Process(target=_measure, args=(folder, said))
    runner.start()
    runner.join(60)
    found = json.loads(said.read_text())
    assert anon[0] <= found["anon"] <= anon[1]
    assert file[0] <= found["file"] <= file[1]
    assert found["kept"] < 10

"""The null engine: true shapes, no arithmetic, and the manners of a real one."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.engines.spec import GRAPHS
from support.model_folders import make_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(make_model_folder(tmp_path_factory.mktemp("model") / "model").path)


def test_outputs_are_finite_the_same_and_alike_in_every_row(folder: ModelFolder) -> None:
    engine = NullBackend(folder).load("unet_step")
    x, y = np.zeros((3, 5, 8), np.float32), np.full((3, 5, 16), np.nan, np.float32)
    engine.bind({"x": x, "y": y})
    engine.enqueue()
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 0.5
    assert (y == y[0, 0]).all()
    assert len(set(y[0, 0].tolist())) > 1
    first = y.copy()
    engine.enqueue()
    np.testing.assert_array_equal(y, first)


@pytest.mark.parametrize("backend", [NullBackend, OrtBackend])
def test_it_has_the_signatures_and_the_manners_of_the_real_one(
    folder: ModelFolder, backend: type[NullBackend] | type[OrtBackend]
) -> None:
    opened: Backend = backend(folder)
    for graph in GRAPHS:
        for precision in ("float32", "float16"):
            engine = opened.load(graph, precision)
            variant = folder.variant(graph, precision)
            assert tuple(engine.inputs.values()) == variant.inputs
            assert tuple(engine.outputs.values()) == variant.outputs
    engine = opened.load("unet_step")
    with pytest.raises(BadInput, match="unet_step: no arrays are bound; call bind first"):
        engine.enqueue()
    x, y = np.zeros((1, 2, 8), np.float32), np.zeros((1, 3, 16), np.float32)
    with pytest.raises(BadInput, match="and tokens is 2 in x"):
        engine.bind({"x": x, "y": y})
    engine.bind({"x": x, "y": y[:, :2].copy()})
    with pytest.raises(BadInput, match="pass None"):
        engine.enqueue(7)
    engine.close()
    engine.close()
    with pytest.raises(BadInput, match="no arrays are bound"):
        engine.enqueue()
    with pytest.raises(BadInput, match="unet_step: the engine is closed; load it again"):
        engine.bind({"x": x, "y": y})
    with pytest.raises(BadInput, match="has no ONNX graph nothing"):
        opened.load("nothing")


def test_it_needs_no_graph_file(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    folder = open_model(model.path)
    for path in model.path.glob("*.onnx"):
        path.unlink()
    assert NullBackend(folder, precision="float16").load("vae_decoder").inputs["x"].dtype == (
        "float16"
    )
    assert NullBackend(folder).name == "null"

"""Libraries beside our kernels: opened where they are and were measured, and never in the way."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import backend, build, libraries
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.build import measured
from diffusion_rt.engines.native.cublas_ways import CublasLt
from diffusion_rt.engines.native.libraries import open_libraries
from diffusion_rt.engines.native.needed import Target
from diffusion_rt.engines.native.tactics import Tactics, key_of, path_with_libraries
from diffusion_rt.kernels.driver.simulator import Simulator
from support.device_graphs import simulated_gpu
from support.fake_cublas import FakeCublasLt

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"


@pytest.fixture
def model() -> ModelFolder:
    return open_model(SHIPPED)


@pytest.fixture
def gpu() -> Gpu:
    return simulated_gpu(arch=80)


@pytest.fixture
def fake(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    assert isinstance(gpu.device, Simulator)
    made = FakeCublasLt(gpu.device)
    monkeypatch.setattr(libraries, "KNOWN", {"cuBLASLt": lambda device: CublasLt(made, device)})
    return made


def test_what_is_not_installed_is_logged_and_no_error(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublasLt", None)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with caplog.at_level("INFO"):
        assert open_libraries(gpu.device) == ()
    assert "cuBLASLt is not used" in caplog.text
    assert "cuDNN is not used" in caplog.text


@pytest.mark.parametrize("error", [OSError("no libcublasLt.so.13"), RuntimeError("cuda\nlost")])
def test_nor_is_one_that_does_not_open(
    gpu: Gpu, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: Any) -> Any:
        raise error

    monkeypatch.setattr(libraries, "KNOWN", {"cuBLASLt": broken})
    assert open_libraries(gpu.device) == ()
    with pytest.raises(BadInput, match="--libraries: none is here; pip install nvmath-python"):
        build._opened(gpu.device)


def test_a_start_opens_none_that_was_not_measured(
    model: ModelFolder, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(device: Any) -> Any:
        raise AssertionError("a library was opened")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend, "open_libraries", never)
    open_native(model, gpu=gpu)


def test_measured_by_a_build_it_runs_a_graph(
    model: ModelFolder,
    gpu: Gpu,
    fake: FakeCublasLt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder("tactics")
    opened = open_libraries(gpu.device)
    assert [library.version for library in opened] == ["cublaslt-130300"]
    tactics = Tactics(folder, key_of(gpu.device, opened))
    assert tactics.path == path_with_libraries(folder, gpu.device)
    target = Target(model, [(32, 32)], [1], 32, "float32")
    measured(
        target,
        gpu,
        tactics,
        force=False,
        libraries=opened,
        graphs=("text_encoder",),
        progress=lambda stage, done, total: None,
    )
    assert not fake.made  # closed with the graphs
    states = {}
    for wanted in (False, True):
        fake.ran.clear()
        native = open_native(model, precision="float32", gpu=gpu, libraries=wanted)
        engine = native.load("text_encoder")
        outputs = {
            name: np.full(spec.resolve({"batch": 2, "tokens": 32}), np.nan, spec.dtype)
            for name, spec in engine.outputs.items()
        }
        engine.bind({"input_ids": np.arange(64).reshape(2, 32), **outputs})
        engine.enqueue()
        states[wanted] = outputs["hidden_states"]
        assert bool(fake.ran) == wanted
    np.testing.assert_allclose(states[True], states[False], rtol=0, atol=2e-5)


def test_for_chips_that_are_not_here_none_can_be_measured(model: ModelFolder) -> None:
    with pytest.raises(BadInput, match="--libraries are measured on the GPU here"):
        build.build(model, archs=(80,), libraries=True)


def test_a_build_without_them_ends_their_use(
    model: ModelFolder,
    gpu: Gpu,
    fake: FakeCublasLt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[tuple[str, ...]] = []

    def noted(target: Target, gpu: Gpu, tactics: Tactics, **how: Any) -> str:
        used.append(tuple(library.version for library in how["libraries"]))
        tactics.save()
        return "tactics"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "open_device", lambda: gpu.device)
    monkeypatch.setattr(build, "Gpu", lambda device, images: gpu)
    monkeypatch.setattr(Gpu, "close", lambda self: None)
    monkeypatch.setattr(build, "_prepared", lambda *given: "kernels")
    monkeypatch.setattr(build, "measured", noted)
    path = path_with_libraries(cache_folder("tactics"), gpu.device)
    build.build(model, libraries=True)
    assert path.exists()
    build.build(model)
    assert not path.exists()
    assert used == [("cublaslt-130300",), ()]

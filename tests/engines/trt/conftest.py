"""TensorRT, simulated or real, and the shipped model with engines built on it.

The tests of a module have a cache folder of their own: what plans are trusted is noted there, and
plans lie there that a folder could not take.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.build import build
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from support.model_folders import make_model_folder
from support.simulated_build import in_place_of_tensorrt
from support.tensorrt_bench import COVERAGE, KINDS, PLAIN, Kind, tensorrt_on


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set for a whole module, so that tests of hypothesis may use it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def gpu(kind: Kind) -> Iterator[Gpu]:
    with tensorrt_on(kind) as made:
        yield made


@pytest.fixture
def simulated(kind: Kind) -> None:
    """For tests that ask for more than a device shared with others can promise."""
    if kind != "simulated":
        pytest.skip("skipped: of the simulator alone")


@pytest.fixture(scope="module")
def model(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """shapes-xl with its engines built, in float32."""
    folder = tmp_path_factory.mktemp("built") / "shapes-xl"
    shutil.copytree(SHIPPED, folder)
    found = open_model(folder)
    build(found, COVERAGE, PLAIN, device=gpu.device, made_by="tests")
    return found


@pytest.fixture(scope="module")
def pipelines(model: ModelFolder, gpu: Gpu) -> Iterator[tuple[Pipeline, Pipeline]]:
    """On ONNX Runtime, and on TensorRT."""
    with (
        Pipeline(model, OrtBackend(model, threads=1)) as host,
        Pipeline(model, open_trt(model, gpu)) as device,
    ):
        yield host, device


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's folder in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusion-rt"


@pytest.fixture
def device() -> Iterator[Simulator]:
    """A device without kernels, for builds with the simulated TensorRT."""
    with in_place_of_tensorrt() as simulator:
        yield simulator


@pytest.fixture
def small(tmp_path: Path) -> ModelFolder:
    """A model of a few layers, without engines."""
    make_model_folder(tmp_path / "model", stored="float16")
    return open_model(tmp_path / "model")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """shapes-xl, without engines."""
    folder = tmp_path_factory.mktemp("shapes") / "shapes-xl"
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("engines"))
    return open_model(folder)

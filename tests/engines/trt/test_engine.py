"""The whole path on the simulated TensorRT (`-m trt`: on the real one): build, load, run, draw."""

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.buckets import parse_buckets
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.profiles import Coverage, Range
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.tensorrt_bench import KINDS, tensorrt_on

COVERAGE = Coverage(
    buckets=parse_buckets("128x128,96x160"),
    batch=Range(min=1, opt=1, max=3),
    chunks=Range(min=1, opt=1, max=2),
)
PLAIN = Options(precision="float32", vae_precision="float32", builder=BuilderOptions(tf32=False))
PROMPT = "a large red circle above a small blue square on a green background"


@pytest.fixture(scope="module", params=KINDS)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    with tensorrt_on(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def model(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """shapes-xl with its engines built, in float32."""
    folder = tmp_path_factory.mktemp("built") / "shapes-xl"
    shutil.copytree(SHIPPED, folder)
    found = open_model(folder)
    build(found, COVERAGE, PLAIN, device=gpu.device, made_by="tests")
    return found


def random_inputs(engine: Engine, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for name, spec in engine.inputs.items():
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            found[name] = rng.integers(0, 50, shape)
        else:
            found[name] = rng.normal(size=shape).astype(spec.dtype)
    return found


SIZES = {
    "text_encoder": {"batch": 3, "tokens": 32},
    "text_encoder_2": {"batch": 1, "tokens": 32},
    "unet_prompt": {"batch": 4, "tokens": 64},
    "unet_timestep": {"batch": 7, "n": 7},
    "unet_step": {"batch": 6, "tokens": 32, "height": 20, "width": 12},
    "vae_decoder": {"batch": 1, "height": 16, "width": 16, "image_height": 128, "image_width": 128},
    "vae_encoder": {
        "batch": 1,
        "height": 160,
        "width": 96,
        "latent_height": 20,
        "latent_width": 12,
    },
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_gives_what_onnx_runtime_gives(
    model: ModelFolder, gpu: Gpu, graph: str
) -> None:
    host = OrtBackend(model, threads=1).load(graph)
    engine = open_trt(model, gpu).load(graph)
    inputs = random_inputs(host, SIZES[graph])
    answers = []
    for each in (host, engine):
        outputs = {}
        for name, spec in each.outputs.items():
            outputs[name] = np.full(spec.resolve(SIZES[graph]), np.nan, spec.dtype)
        each.bind(inputs | outputs)
        each.enqueue()
        answers.append(outputs)
    engine.close()
    for name, wanted in answers[0].items():
        scale = np.abs(wanted).max()
        assert np.abs(answers[1][name] - wanted).max() <= 2e-5 * scale, name


def drawn(pipeline: Pipeline, **settings: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latents and pixels of a request."""
    base: dict[str, Any] = {"prompt": PROMPT, "width": 128, "height": 128, "seed": 11}
    base |= {"num_inference_steps": 6, "guidance_scale": 4.0}
    result = pipeline.generate(Request(**(base | settings)))
    return result.latents, np.stack([np.asarray(image) for image in result.images])


@pytest.fixture(scope="module")
def pipelines(model: ModelFolder, gpu: Gpu) -> Iterator[tuple[Pipeline, Pipeline]]:
    """On ONNX Runtime, and on TensorRT."""
    with (
        Pipeline(model, OrtBackend(model, threads=1)) as host,
        Pipeline(model, open_trt(model, gpu)) as device,
    ):
        yield host, device


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "euler"},
        {"sampler": "dpmpp-2m", "num_images_per_prompt": 3},
        {"sampler": "euler-a", "width": 96, "height": 160, "num_images_per_prompt": 5},
        {"sampler": "unipc", "guidance_scale": 1.0},
        {"sampler": "ddim", "guidance_rescale": 0.7, "negative_prompt": "a star " * 20},
    ],
    ids=lambda settings: settings["sampler"],
)
def test_pictures_are_those_of_onnx_runtime(
    pipelines: tuple[Pipeline, Pipeline], settings: dict[str, Any]
) -> None:
    (wanted, pictures), (latents, found) = (drawn(pipeline, **settings) for pipeline in pipelines)
    assert np.abs(latents - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert pictures.std() > 10, "a flat picture proves nothing"
    assert np.abs(found.astype(int) - pictures).max() <= 1

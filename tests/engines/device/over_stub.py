"""The loop and the decoder on the real device over the real bindings and the stub driver: which
calls, in which order, and what comes out. Run by `test_over_stub.py` where libcuda.so.1 is the
stub.

The graphs are stand-ins: copies, and one small kernel.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.decoder import DeviceDecoder
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.loop import DeviceDenoiser
from diffusion_rt.engines.device.protocol import AHEAD, DeviceArray, DeviceEngine
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.driver import Launch, Parameter, open_device
from diffusion_rt.kernels.driver.cuda import context
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.decode import to_pixels
from diffusion_rt.runtime.denoise import Guidance, denoise, denoise_on_device
from diffusion_rt.runtime.noise import make_noise
from diffusion_rt.runtime.plan import Plan, Step
from support.device_graphs import HostImages
from support.stub_driver import Journal

Array = NDArray[Any]
SHAPE = (4, 5, 3)
MODEL = Variant(
    name="stand_in_model",
    kernel="stand_in_model",
    source=str(Path(__file__).resolve().parents[2] / "support" / "stand_in_model.cu"),
    constants=(),
    parameters=(
        Parameter("seen", "pointer", 2),
        Parameter("projection", "pointer", 4),
        Parameter("prediction", "pointer", 2),
        Parameter("count", "int32"),
    ),
    registers=64,
)
SPECS = {
    "unet_prompt": (
        {
            "context": TensorSpec("context", "float16", ("batch", "tokens", 8)),
            "text_embeds": TensorSpec("text_embeds", "float32", ("batch", 4)),
            "time_ids": TensorSpec("time_ids", "float32", ("batch", 6)),
        },
        {
            "added": TensorSpec("added", "float32", ("batch", 4)),
            "key": TensorSpec("key", "float16", ("batch", "tokens", 8)),
        },
    ),
    "unet_timestep": (
        {
            "timestep": TensorSpec("timestep", "float32", ("n",)),
            "added": TensorSpec("added", "float32", ("n", 4)),
        },
        {"projection": TensorSpec("projection", "float32", ("n", 4))},
    ),
    "unet_step": (
        {
            "latent": TensorSpec("latent", "float16", ("batch", 4, "height", "width")),
            "projection": TensorSpec("projection", "float32", ("batch", 4)),
            "key": TensorSpec("key", "float16", ("batch", "tokens", 8)),
        },
        {"prediction": TensorSpec("prediction", "float16", ("batch", 4, "height", "width"))},
    ),
    "vae_decoder": (
        {"latent": TensorSpec("latent", "float32", ("batch", 3, "height", "width"))},
        {"image": TensorSpec("image", "float32", ("batch", 3, "height", "width"))},
    ),
}


class StandIn:
    """One graph: it copies what it may, and the UNet's step runs the kernel."""

    generation = 0

    def __init__(self, graph: str, gpu: Gpu) -> None:
        self.inputs, self.outputs = SPECS[graph]
        self.graph, self.gpu = graph, gpu
        self.bound: Mapping[str, DeviceArray] = {}

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        self.bound = dict(buffers)

    def enqueue(self, stream: Any) -> None:
        at = self.bound
        if self.graph == "unet_prompt":
            stream.copy(at["added"], at["text_embeds"])
            stream.copy(at["key"], at["context"])
        elif self.graph == "unet_timestep":
            stream.copy(at["projection"], at["added"])
        elif self.graph == "vae_decoder":
            stream.copy(at["image"], at["latent"])
        else:
            rows = at["latent"].shape[0]
            count = at["latent"].nbytes // rows // 2
            launch = Launch(grid=(-(-count // 128), rows, 1), block=(128, 1, 1))
            places = [at[name].address for name in ("latent", "projection", "prediction")]
            stream.launch(self.gpu.kernel(MODEL), launch, (*places, count))

    def close(self) -> None: ...


class StandIns:
    """The graphs."""

    name = "stand-in"

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def open(self, graph: str, precision: Precision | None = None) -> DeviceEngine:
        return StandIn(graph, self.gpu)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None: ...

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        return images

    def close(self) -> None: ...


class Predictor:
    """What the stand-in computes, on the host."""

    def __init__(self, told: Conditioning) -> None:
        self.projection = told.text_embeds[0]

    def predict(self, evaluation: int, latent: Array, scale: float) -> Array:
        rows = np.concatenate([latent * np.float32(scale)] * 2).astype(np.float16)
        factor = 1 + 0.1 * np.arange(len(rows), dtype=np.float32)[:, None, None, None]
        found = np.tanh(rows.astype(np.float32) * factor + self.projection[0])
        answer: Array = (found + self.projection[1]).astype(np.float16)
        return answer


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    journal = Journal(importlib.import_module("cuda.bindings.driver"))
    monkeypatch.setattr(context, "bindings", lambda: journal)
    return journal


@pytest.fixture
def gpu(journal: Journal) -> Iterator[Gpu]:
    made = Gpu(open_device(), HostImages())
    yield made
    made.close()


def request(count: int, seed: int) -> tuple[Conditioning, Plan]:
    rng = np.random.default_rng(seed)
    told = Conditioning(
        context=rng.normal(size=(2, 7, 8)).astype(np.float32),
        text_embeds=np.repeat(rng.normal(0, 0.3, (1, 4)), 2, axis=0).astype(np.float32),
        time_ids=np.zeros((2, 6), np.float32),
    )
    steps = []
    for index in range(count):
        matrix = rng.normal(0, 0.1, (2, 4))
        matrix[0, 0] += 0.9
        fresh = index % 3 == 1
        matrix[:, -1] *= fresh
        steps.append(
            Step(
                timestep=999.0 - index,
                sigma=1.0,
                c_in=0.8,
                c_skip=1.0,
                c_out=-0.3,
                noise=fresh,
                matrix=matrix,
            )
        )
    return told, Plan(sampler="stand-in", start=1.0, picture=(1.0, 1.0), steps=tuple(steps))


def check(denoiser: DeviceDenoiser, images: int, count: int, seed: int) -> None:
    told, plan = request(count, seed)
    guidance = Guidance(2.0, 0.7)

    def silent(done: int, total: int) -> None: ...

    sources = [make_noise("cpu", seed + image) for image in range(images)]
    wanted = denoise(Predictor(told), plan, sources, SHAPE, guidance, silent)
    sources = [make_noise("cpu", seed + image) for image in range(images)]
    found = denoise_on_device(denoiser, told, plan, sources, SHAPE, guidance, silent)
    # A float16 prediction may round to its neighbour, which guidance doubles; later steps carry on.
    assert np.abs(found - wanted).max() < 4 * 2.0**-11
    assert wanted.std() > 0.02


def captures(calls: list[str]) -> list[list[str]]:
    """What stands between the beginning and the end of each capture."""
    begins = (i + 1 for i, call in enumerate(calls) if call == "cuStreamBeginCapture")
    return [calls[begin : calls.index("cuStreamEndCapture", begin)] for begin in begins]


STEP, PROMPT, TIMESTEP = ["cuLaunchKernelEx"] * 5, ["cuMemcpyAsync"] * 2, ["cuMemcpyAsync"]


def test_latents_and_the_order_of_calls(gpu: Gpu, journal: Journal) -> None:
    denoiser = DeviceDenoiser(StandIns(gpu), gpu)
    check(denoiser, images=1, count=1, seed=1)
    calls = journal.take()
    assert not captures(calls), "what came once was captured"
    assert "cuGraphLaunch" not in calls

    for count, captured, before in (
        (9, [PROMPT, STEP], 1),  # other timesteps than those of one evaluation
        (30, [], 1),
        (30, [TIMESTEP], 2),
        (30, [], 2),
        (70, [STEP], 1),  # the 65th evaluation wants larger tables
    ):
        check(denoiser, images=1, count=count, seed=count)
        calls, arguments = journal.calls[:], journal.arguments[:]
        journal.take()
        assert captures(calls) == captured
        replays = [i for i, call in enumerate(calls) if call == "cuGraphLaunch"]
        assert len(replays) == before + count - (count == 70)
        first, last = replays[before], replays[-1]
        between = calls[first:last]
        assert set(between) <= {
            "cuGraphLaunch",
            "cuEventRecord",
            "cuEventSynchronize",
            "cuMemcpyAsync",
            "cuStreamWaitEvent",
        }
        assert between.count("cuMemcpyAsync") <= count // 3 + 1, "noise, and nothing else"
        assert between.count("cuStreamWaitEvent") == between.count("cuMemcpyAsync")
        ahead = 0
        for call in calls[first:]:
            ahead += (call == "cuGraphLaunch") - (call == "cuEventSynchronize")
            assert ahead <= AHEAD
        for call, given in zip(calls, arguments, strict=True):
            if call in ("cuGraphLaunch", "cuMemcpyAsync", "cuEventRecord"):
                assert int(given[-1]) != 0, f"{call} on the default stream"
    denoiser.close()
    memory = gpu.device.memory()
    assert memory.free == memory.total


def test_pixels_and_the_order_of_calls(gpu: Gpu, journal: Journal) -> None:
    decoder = DeviceDecoder(StandIns(gpu), gpu)
    run = ["cuMemsetD8Async", "cuMemcpyAsync", "cuLaunchKernelEx"]
    for turn, captured in enumerate(([], [run], [])):
        image = np.random.default_rng(turn).normal(0, 0.7, (1, 3, 9, 8)).astype(np.float32)
        wanted, pixels = to_pixels(image), np.zeros((1, 9, 8, 3), np.uint8)
        journal.take()
        assert decoder(image, pixels)
        np.testing.assert_array_equal(pixels, wanted)
        calls = journal.take()
        assert captures(calls) == captured
        assert calls.count("cuGraphLaunch") == min(turn, 1)
        assert calls.count("cuStreamSynchronize") == 1, "one wait, for pixels and flag"
    image[0, 1, 2, 3] = np.inf
    assert not decoder(image, pixels)
    decoder.close()
    memory = gpu.device.memory()
    assert memory.free == memory.total


def test_several_sizes_side_by_side(gpu: Gpu, journal: Journal) -> None:
    denoiser = DeviceDenoiser(StandIns(gpu), gpu, kept=2)
    for turn in range(2):
        for images in (1, 3, 2):
            check(denoiser, images=images, count=4, seed=10 * turn + images)
    denoiser.close()
    memory = gpu.device.memory()
    assert memory.free == memory.total

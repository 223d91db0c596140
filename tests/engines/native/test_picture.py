"""Prompt to pixels by the native engine on the simulator: as the host draws, in less memory too."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffusion_rt.__main__ import main
from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.loop import DeviceDenoiser
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.forecast import Forecaster, Work
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.host_backend import HostBackend
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.buffers import SimulatedBuffer
from diffusion_rt.runtime.pipeline import Pipeline, Result
from diffusion_rt.runtime.request import Request
from support.device_graphs import HostImages, simulated_gpu

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
SIDE = 4  # of the latents
WORK = Work(height=SIDE, width=SIDE, rows=2, images=1, tokens=32)


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model(SHIPPED)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def asked(**changes: object) -> Request:
    fields: dict[str, object] = {
        "prompt": "a large red circle on a white background",
        "width": 8 * SIDE,
        "height": 8 * SIDE,
        "num_inference_steps": 2,
        "seed": 7,
        "sampler": "euler-a",
    }
    return Request(**(fields | changes))  # type: ignore[arg-type]


def pixels(result: Result) -> NDArray[np.int64]:
    return np.stack([np.asarray(image) for image in result.images]).astype(np.int64)


def drawn(model: ModelFolder, request: Request) -> Result:
    """By the NumPy references of the same plans."""
    with Pipeline(model, HostBackend(model)) as pipeline:
        return pipeline.generate(request)


def same(found: Result, wanted: Result) -> None:
    assert np.abs(found.latents - wanted.latents).max() < 1e-5 * np.abs(wanted.latents).max()
    assert np.abs(pixels(found) - pixels(wanted)).max() <= 1


class Measured(Simulator):
    """Knows the most memory it ever had in use."""

    peak = 0

    def allocate(self, nbytes: int) -> SimulatedBuffer:
        found = super().allocate(nbytes)
        self.peak = max(self.peak, self.space.used)
        return found


def test_pictures_are_the_hosts_whichever_size_was_captured_last(model: ModelFolder) -> None:
    """One size is kept: the second takes the first one's memory, which is captured anew after."""
    device = Measured(arch=80)
    gpu = Gpu(device, HostImages())
    graphs = NativeGraphs(model, gpu, precision="float32")
    guided, free = asked(), asked(guidance_scale=1.0)  # half the rows
    with Pipeline(model, DeviceBackend(graphs, gpu)) as pipeline:
        pipeline._denoiser = DeviceDenoiser(graphs, gpu, kept=1)
        wanted = drawn(model, guided)
        same(pipeline.generate(guided), wanted)
        used = device.space.used
        same(pipeline.generate(free), drawn(model, free))
        assert device.space.used < used
        same(pipeline.generate(guided), wanted)
        assert device.space.used == used
    assert device.space.used == 0
    forecast = Forecaster(model, "float32")(WORK)
    assert 0.7 * forecast.together < device.peak <= forecast.together


def test_less_memory_takes_the_parts_in_turn_and_draws_the_same(model: ModelFolder) -> None:
    forecast = Forecaster(model, "float32")(WORK)
    device = Measured(arch=80)
    assert forecast.in_turn < forecast.together
    request = asked(num_inference_steps=1)
    wanted = drawn(model, request)
    budget = forecast.in_turn
    gpu = Gpu(device, HostImages())
    backend = open_native(model, precision="float32", budget=budget, gpu=gpu)
    with Pipeline(model, backend, memory=budget) as pipeline:
        for _ in range(2):
            same(pipeline.generate(request), wanted)
        assert pipeline.settle(request).forecast is not None
    assert 0.7 * forecast.in_turn < device.peak <= budget


def test_the_command_line_draws_by_launches_and_by_their_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusion_rt.engines.choose._has_driver", lambda: True)
    monkeypatch.setattr(
        "diffusion_rt.engines.native.backend.open_gpu", lambda: simulated_gpu(arch=80)
    )
    argv = ["generate", "a small blue star", "--engine", "native", "--seed", "3"]
    argv += ["--width", "32", "--height", "32", "--steps", "1", "--guidance-scale", "1"]
    pictures = []
    for name, more in (("host", ["--provider", "host"]), ("gpu", ["--memory", "24M"])):
        path = tmp_path / f"{name}.png"
        assert main([*argv, *more, "--output", str(path)]) == 0
        with Image.open(path) as image:
            pictures.append(np.asarray(image).astype(int))
            assert "native (" in str(image.info)
    assert np.abs(pictures[0] - pictures[1]).max() <= 3  # float32, and float16
    said = capsys.readouterr().err
    assert "engine native on host" in said
    assert "engine native on cuda" in said
    assert "memory at most" in said


def test_a_decoder_too_large_is_cut_in_tiles_first(model: ModelFolder) -> None:
    forecaster = Forecaster(model)
    work = Work(height=64, width=64, rows=1, images=1, tokens=32)
    whole = forecaster(work)
    assert whole.decode.total > whole.denoise.total
    cut, found = forecaster.fitted(work, whole.denoise.total)
    assert cut.tile is not None
    assert cut.images == 1
    assert found.in_turn <= whole.denoise.total < whole.in_turn
    with pytest.raises(OutOfMemory, match="decode of 512x512 needs"):
        forecaster.fitted(work, whole.denoise.total, tiles=False)


def test_then_fewer_images_are_denoised_together(model: ModelFolder) -> None:
    forecaster = Forecaster(model)
    work = Work(height=64, width=64, rows=2, images=8, tokens=32)
    whole = forecaster(work)
    budget = whole.denoise.total // 2
    cut, found = forecaster.fitted(work, budget)
    assert 1 <= cut.images < 8
    assert found.denoise.total <= budget


def test_what_does_not_fit_is_told_with_what_would(model: ModelFolder) -> None:
    forecaster = Forecaster(model)
    work = Work(height=96, width=128, rows=2, images=2, tokens=32)
    least = forecaster(Work(height=24, width=32, rows=2, images=1, tokens=32)).in_turn
    with pytest.raises(
        OutOfMemory,
        match=r"denoise of 1024x768 needs \d+\.\d MB of device memory, \d+\.\d MB of it for "
        r"weights; the budget is \d+\.\d MB; \d+x\d+ would fit",
    ) as told:
        forecaster.fitted(work, least)
    width, height = str(told.value).split("; ")[-1].split(" ")[0].split("x")
    smaller = Work(height=int(height) // 8, width=int(width) // 8, rows=2, images=1, tokens=32)
    forecaster.fitted(smaller, least)
    with pytest.raises(OutOfMemory, match="no size would fit"):
        forecaster.fitted(work, 1_000_000)


def test_a_forecast_in_words(model: ModelFolder) -> None:
    found = Forecaster(model)(WORK)
    assert "every part stays loaded" in found.told(1 << 40)
    assert "parts in turn: text" in found.told(found.in_turn)

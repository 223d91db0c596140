"""Prompt to pixels by the native engine on the simulator: as the host draws, in less memory too."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.forecast import Forecaster, Work
from diffusion_rt.engines.native.host_backend import HostBackend
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.buffers import SimulatedBuffer
from diffusion_rt.runtime.pipeline import Pipeline, Result
from diffusion_rt.runtime.request import Request
from support.device_graphs import HostImages

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


@pytest.fixture(scope="module")
def drawn(model: ModelFolder) -> Result:
    with Pipeline(model, HostBackend(model)) as pipeline:
        return pipeline.generate(asked())


class Measured(Simulator):
    """Knows the most memory it ever had in use."""

    peak = 0

    def allocate(self, nbytes: int) -> SimulatedBuffer:
        found = super().allocate(nbytes)
        self.peak = max(self.peak, self.space.used)
        return found


def native(model: ModelFolder, device: Simulator, memory: int | None = None) -> Pipeline:
    backend = open_native(model, precision="float32", budget=memory, gpu=Gpu(device, HostImages()))
    return Pipeline(model, backend, memory=memory)


def test_a_picture_is_the_hosts_and_a_forecast_holds(model: ModelFolder, drawn: Result) -> None:
    device = Measured(arch=80)
    with native(model, device) as pipeline:
        for _ in range(2):  # captured, then replayed
            found = pipeline.generate(asked())
            largest = np.abs(drawn.latents).max()
            assert np.abs(found.latents - drawn.latents).max() < 1e-5 * largest
            assert np.abs(pixels(found) - pixels(drawn)).max() <= 1
    assert device.space.used == 0
    forecast = Forecaster(model, "float32")(WORK)
    assert 0.7 * forecast.together < device.peak <= forecast.together


def test_less_memory_takes_the_parts_in_turn_and_draws_the_same(
    model: ModelFolder, drawn: Result
) -> None:
    forecaster = Forecaster(model, "float32")
    forecast = forecaster(WORK)
    device = Measured(arch=80)
    assert forecast.in_turn < forecast.together
    with native(model, device, forecast.in_turn) as pipeline:
        for _ in range(2):
            found = pipeline.generate(asked())
            largest = np.abs(drawn.latents).max()
            assert np.abs(found.latents - drawn.latents).max() < 1e-5 * largest
            assert np.abs(pixels(found) - pixels(drawn)).max() <= 1
        assert pipeline.settle(asked()).forecast is not None
    assert 0.7 * forecast.in_turn < device.peak <= forecast.in_turn


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

"""Prompt to pixels by the native engine on the simulator: as the host draws, in less memory too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffusion_rt.__main__ import main
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.loop import DeviceDenoiser
from diffusion_rt.engines.errors import BadInput, NoKernel, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import backend as opening
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.forecast import Forecaster, Work
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.host_backend import HostBackend
from diffusion_rt.engines.native.tactics import path_with_libraries
from diffusion_rt.kernels.compile import CompileError
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.buffers import SimulatedBuffer
from diffusion_rt.runtime.decode import Decoder
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


def test_as_many_are_denoised_together_as_the_forecast_says(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the other stages hold memory when it is asked how many fit."""
    forecaster = Forecaster(model, "float32")
    budget = forecaster(replace(WORK, rows=1, images=3)).denoise.total
    assert forecaster(replace(WORK, rows=1, images=4)).denoise.total > budget
    backend = open_native(model, precision="float32", budget=budget, gpu=simulated_gpu(arch=80))
    together: list[int] = []

    def denoised(self: DeviceDenoiser, *, start: NDArray[np.float32], **rest: object) -> object:
        together.append(len(start))
        return real(self, start=start, **rest)

    real: Callable[..., object] = DeviceDenoiser.__call__
    monkeypatch.setattr(DeviceDenoiser, "__call__", denoised)
    request = asked(num_inference_steps=1, guidance_scale=1.0, num_images_per_prompt=4)
    with Pipeline(model, backend, memory=budget) as pipeline:
        monkeypatch.setattr(pipeline, "_forecaster", forecaster)
        assert pipeline.settle(request).room.group == 3
        found = pipeline.generate(request)
    assert together == [3, 1]
    same(found, drawn(model, request))


def test_what_fails_when_opening_leaves_no_device_open(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Simulator, "close", lambda self: closed.append("device"))

    class Old(Simulator):
        arch = 75

    class Library:
        version = "library-1"

        def close(self) -> None:
            closed.append("library")

    def refused(*_: object) -> None:
        raise CompileError("no compiler")

    with pytest.raises(BadInput, match="sm_75, sm_80 or newer"):
        open_native(model, gpu=Gpu(Old(), HostImages()))
    assert closed == ["device"]
    gpu = simulated_gpu(arch=80)
    monkeypatch.setattr(gpu, "compile", refused)
    with pytest.raises(CompileError):
        open_native(model, gpu=gpu, budget=1 << 30)
    assert closed == ["device"] * 2
    old = Gpu(Old(), HostImages())
    path_with_libraries(cache_folder("tactics"), old.device).touch()
    monkeypatch.setattr(opening, "open_libraries", lambda device: (Library(),))
    with pytest.raises(BadInput, match="sm_75"):
        open_native(model, gpu=old)
    assert closed == ["device", "device", "library", "device"]


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


def test_what_the_decoder_wants_is_there_before_a_step_is_captured(model: ModelFolder) -> None:
    """Of a size that it wants more memory for than a step: else the next picture captures anew."""
    gpu = simulated_gpu(arch=80)
    graphs = NativeGraphs(model, gpu, precision="float32")
    whole = Forecaster(model, "float32")(Work(height=6, width=8, rows=1, images=1, tokens=32))
    assert whole.decode.activations > whole.denoise.activations
    seen = []

    def note(stage: str, done: int, total: int) -> None:
        if stage != "text":
            seen.append((stage, graphs.arena.generation))

    with Pipeline(model, DeviceBackend(graphs, gpu)) as pipeline:
        request = asked(width=64, height=48, num_inference_steps=1, guidance_scale=1.0)
        pipeline.generate(request, progress=note)
        note("end", 0, 0)
    assert {stage for stage, _ in seen} == {"denoise", "decode", "end"}
    assert len({generation for _, generation in seen}) == 1


def tiled_by_host(model: ModelFolder, latents: NDArray[np.float32], tile: int) -> NDArray[np.int64]:
    """Pixels by the NumPy references."""
    decoder = Decoder(lambda _: HostBackend(model).load("vae_decoder"), model.manifest.vae)
    return np.stack([decoder.decode(latent, tile) for latent in latents]).astype(np.int64)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 4 latent pixels, of pictures that a test can draw."""
    monkeypatch.setattr("diffusion_rt.runtime.decode.SMALLEST_TILE", 4)
    monkeypatch.setattr("diffusion_rt.runtime.memory.SMALLEST_TILE", 4)


def test_a_budget_and_tiles_draw_what_the_host_draws(model: ModelFolder, small_tiles: None) -> None:
    defaults = replace(model.manifest.defaults, width=32, height=32)  # the side of a tile
    folder = replace(model, manifest=replace(model.manifest, defaults=defaults))
    budget = Forecaster(model, "float32")(replace(WORK, width=6)).in_turn
    backend = open_native(folder, precision="float32", budget=budget, gpu=simulated_gpu(arch=80))
    request = asked(width=48, num_inference_steps=1)
    with Pipeline(folder, backend, tiling="on", memory=budget) as pipeline:
        assert pipeline.settle(request).room.tile == 4
        found = pipeline.generate(request)
        assert pipeline._decoder.tile == 4
    assert np.abs(pixels(found) - tiled_by_host(model, found.latents, 4)).max() <= 1


def test_a_decoder_that_a_budget_does_not_hold_decodes_in_tiles(
    model: ModelFolder, small_tiles: None
) -> None:
    whole, cut = (
        Forecaster(model, "float32")(replace(WORK, height=8, width=8, tile=tile)).decode.total
        for tile in (None, 4)
    )
    budget = (whole + cut) // 2
    backend = open_native(model, precision="float32", budget=budget, gpu=simulated_gpu(arch=80))
    decoder = Decoder(lambda _: backend.load("vae_decoder"), model.manifest.vae)
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    found = decoder.decode(latents[0], None)[None]
    assert decoder.tile == 4
    assert np.abs(found - tiled_by_host(model, latents, 4)).max() <= 1


def test_a_size_that_no_kernel_takes_is_heard_before_anything_is_drawn(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_native(model, precision="float32", gpu=simulated_gpu(arch=80))
    heard: list[tuple[str, int, int]] = []
    with Pipeline(model, backend) as pipeline:
        for most, graph, side in ((20, "unet_step", 32), (33, "vae_decoder", 48)):
            monkeypatch.setattr("diffusion_rt.kernels.attention.MOST_TOKENS", most)
            with pytest.raises(NoKernel, match=rf"^{graph}: .* 1 to {most} taken.*--engine ort$"):
                pipeline.generate(
                    asked(width=side, height=side), progress=lambda *event: heard.append(event)
                )
    assert heard == [("text", 0, 1)]


def test_a_size_that_no_kernel_decodes_is_decoded_in_tiles(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, small_tiles: None
) -> None:
    monkeypatch.setattr("diffusion_rt.kernels.attention.MOST_TOKENS", 33)  # of 6 x 6 latents
    backend = open_native(model, precision="float32", gpu=simulated_gpu(arch=80))
    request = asked(width=48, height=48, num_inference_steps=1, guidance_scale=1.0)
    with Pipeline(model, backend) as pipeline:
        found = pipeline.generate(request)
    assert np.abs(pixels(found) - tiled_by_host(model, found.latents, 4)).max() <= 1


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

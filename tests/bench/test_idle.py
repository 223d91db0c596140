"""A GPU that does nothing: the whole loop runs over it, captured, and only our own time is left."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.bench import cli
from diffusion_rt.bench.flags import BINDINGS, IDLE
from diffusion_rt.bench.idle import IdleDevice, IdleGraph, IdleStream, LoopClock, open_idle
from diffusion_rt.bench.ours import Ours
from diffusion_rt.bench.records import read
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.kernels.driver import Device, part
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.races import case


def test_what_is_sent_comes_back_when_it_is_waited_for() -> None:
    device: Device = IdleDevice()
    stream = device.stream()
    sent, there, back = device.pinned(3), device.allocate(300), device.pinned(3)
    assert there.address % 256 == 0
    sent.array[...] = (1, 2, 3)
    stream.copy(there, sent)
    stream.copy(back, part(there, 0, 3))
    assert not back.array.any(), "no copy stands in the way"
    stream.synchronize()
    assert back.array.tolist() == [1, 2, 3]


def test_a_picture_is_drawn_by_replays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    monkeypatch.setattr(IdleGraph, "replay", noted("replay"))
    monkeypatch.setattr(IdleStream, "launch", noted("launch"))
    folder = open_model(SHIPPED)
    backend = open_idle(folder, "idle")
    pipeline = Pipeline(folder, backend)
    request = Request(prompt="x", seed=1, width=32, height=24, num_inference_steps=5)
    first = pipeline.generate(request)
    assert "launch" in seen, "what comes for the first time is not captured"
    pipeline.generate(request)
    seen.clear()
    again = pipeline.generate(request)
    assert set(seen) == {"replay"}
    assert seen.count("replay") >= 5
    assert np.isfinite(first.latents).all()
    # Nobody computes, so the latents are those that were sent.
    assert np.array_equal(first.latents, again.latents)
    assert first.latents.any()
    pipeline.close()
    backend.close()


class Denoised:
    """A denoiser that takes its time where it is told to."""

    def __init__(self, clock: Callable[[int], None]) -> None:
        self.clock = clock
        self.closed = False

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        return images

    def __call__(
        self,
        *,
        noise: Iterable[NDArray[np.float32]],
        report: Callable[[int, int], None],
        **_: Any,
    ) -> NDArray[np.float32]:
        self.clock(100)  # before the first evaluation
        report(0, 2)
        for done in (1, 2):
            next(iter(noise))
            self.clock(3)
            report(done, 2)
        self.clock(100)
        return np.zeros(1, np.float32)

    def close(self) -> None:
        self.closed = True


def test_only_evaluations_are_timed_and_noise_is_drawn_before() -> None:
    now = 0
    told: list[float] = []
    heard: list[tuple[int, int]] = []

    def passes(ticks: int) -> None:
        nonlocal now
        now += ticks

    def noise() -> Iterator[NDArray[np.float32]]:
        for _ in range(2):
            passes(1000)
            yield np.zeros(1, np.float32)

    inner = Denoised(passes)
    timed = LoopClock(inner, told.append, lambda: now)
    given: dict[str, Any] = dict.fromkeys(
        ("conditioning", "evaluations", "guidance_scale", "guidance_rescale", "start")
    )
    timed(noise=noise(), report=lambda done, total: heard.append((done, total)), **given)
    assert told == [3.0]
    assert heard == [(0, 2), (1, 2), (2, 2)]
    timed.close()
    assert inner.closed


def test_our_own_time_is_one_value_for_each_picture() -> None:
    ours = Ours(model=SHIPPED, threads=1, engine="idle", clock=itertools.count().__next__)
    own = ours.run(case(steps=4)).seconds["own"]
    # The clock ticks once at each of the four steps, and at the end of the loop.
    assert own == [(4 + 1) / 4]
    assert ours.peak_device() is None
    ours.close()


@pytest.mark.parametrize("engine", IDLE)
def test_a_record_says_what_it_is_of(engine: str, tmp_path: Path) -> None:
    if engine == BINDINGS and shutil.which("gcc") is None:
        pytest.skip("skipped: no gcc")
    words = ["--engine", engine, "--sizes", "32x24"]
    words += ["--samplers", "euler,euler-a", "--steps", "3", "--repeats", "2", "--warm-up", "1"]
    assert cli.main(["stages", *words, "--output", str(tmp_path)]) == 0
    records = read(tmp_path)
    assert [record.measure for record in records] == ["own", "own"]
    assert [record.setting["sampler"] for record in records] == ["euler", "euler-a"]
    for record in records:
        assert record.setting["engine"] == engine
        assert record.spread is not None
        assert record.spread.n == 2
        assert record.spread.min > 0


@pytest.mark.parametrize(
    "words", [["end-to-end"], ["stages", "--device", "cuda"]], ids=["end-to-end", "cuda"]
)
@pytest.mark.parametrize("engine", IDLE)
def test_it_is_asked_for_where_it_says_something(words: list[str], engine: str) -> None:
    with pytest.raises(BadInput, match=f"diffusion-rt bench stages --engine {engine}$"):
        cli.main([*words, "--engine", engine])


def test_a_driver_that_does_not_compile_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from diffusion_rt.bench import idle_driver

    broken = tmp_path / "idle_driver.c"
    broken.write_text("nothing\n")
    monkeypatch.setattr(idle_driver, "SOURCE", broken)
    if shutil.which("gcc") is not None:
        with pytest.raises(BadInput, match=r"idle-cuda: .*gcc"):
            idle_driver.open_driver()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="install gcc"):
        idle_driver.open_driver()

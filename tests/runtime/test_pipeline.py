"""The pipeline around its engines, which here have true shapes and no arithmetic."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.protocol import Buffers, Engine, Entries
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.runtime import memory, pipeline
from diffusion_rt.runtime.memory import decoder_bytes, unet_bytes
from diffusion_rt.runtime.picture import OURS, parse_metadata, read_metadata
from diffusion_rt.runtime.pipeline import Pipeline, Result
from diffusion_rt.runtime.request import Request
from support.exported import ExportedModel

SIZE: Mapping[str, Any] = {"width": 64, "height": 48}
EVENT = tuple[str, int, int]


@dataclass
class Watch:
    """What the engines of one backend went through, and from how many rows on they fail."""

    open: list[str] = field(default_factory=list)
    loads: int = 0
    batches: list[int] = field(default_factory=list)  # of every run of unet_step
    most_rows: int = 1000
    inside: threading.Lock = field(default_factory=threading.Lock)


class Watched:
    """An engine that reports to a Watch."""

    def __init__(self, graph: str, engine: Engine, watch: Watch) -> None:
        self.graph, self.engine, self.watch = graph, engine, watch
        self.inputs: Mapping[str, TensorSpec] = engine.inputs
        self.outputs: Mapping[str, TensorSpec] = engine.outputs
        self.rows = 0
        watch.open.append(graph)
        watch.loads += 1

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        self.rows = len(next(iter(buffers.values())))
        self.engine.bind(buffers, only)

    def enqueue(self, stream: int | None = None) -> None:
        assert self.watch.inside.acquire(blocking=False), "two threads in the engines at once"
        try:
            if self.graph == "unet_step":
                self.watch.batches.append(self.rows)
                if self.rows > self.watch.most_rows:
                    raise OutOfMemory("unet_step: the memory there is does not suffice")
            self.engine.enqueue(stream)
        finally:
            self.watch.inside.release()

    def close(self) -> None:
        self.watch.open.remove(self.graph)
        self.engine.close()


class WatchedBackend(NullBackend):
    def __init__(self, folder: ModelFolder, watch: Watch) -> None:
        super().__init__(folder)
        self.watch = watch

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        return Watched(graph, super().load(graph, precision), self.watch)


@pytest.fixture(scope="module")
def folder(exported_model: ExportedModel) -> ModelFolder:
    return open_model(exported_model("plain"))


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def make(folder: ModelFolder, watch: Watch) -> Callable[..., Pipeline]:
    return lambda **options: Pipeline(folder, WatchedBackend(folder, watch), **options)


def request(**changes: Any) -> Request:
    settings: dict[str, Any] = {"prompt": "a star", "seed": 3, "num_inference_steps": 3, **SIZE}
    return Request(**(settings | changes))


def same(found: Result, wanted: Result) -> None:
    np.testing.assert_array_equal(found.latents, wanted.latents)
    assert found.seeds == wanted.seeds
    for image, other in zip(found.images, wanted.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


def room_for(folder: ModelFolder, images: int) -> int:
    """Bytes that hold so many images and the decoder, no more."""
    height, width = SIZE["height"] // 8, SIZE["width"] // 8
    one = unet_bytes(folder.manifest.unet, 2, height, width)
    return images * one + decoder_bytes(folder.manifest.vae, height, width) + one // 2


def test_groups_draw_what_one_batch_draws(
    folder: ModelFolder, make: Callable[..., Pipeline], watch: Watch
) -> None:
    asked = request(num_images_per_prompt=5, sampler="euler-a")
    whole = make().generate(asked)
    assert watch.batches == [10] * 3
    watch.batches.clear()
    heard: list[EVENT] = []
    parts = make(room=room_for(folder, 2)).generate(asked, progress=lambda *e: heard.append(e))
    assert watch.batches == [4] * 6 + [2] * 3
    same(parts, whole)
    denoised = [done for stage, done, total in heard if stage == "denoise"]
    assert denoised == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9]
    assert {total for stage, _, total in heard if stage == "denoise"} == {9}
    assert [event for event in heard if event[0] != "denoise"] == [
        ("text", 0, 1),
        ("text", 1, 1),
        *(("decode", i, 5) for i in range(6)),
    ]


def test_a_group_that_runs_out_of_memory_is_halved(
    make: Callable[..., Pipeline], watch: Watch
) -> None:
    asked = request(num_images_per_prompt=5, sampler="euler-a")
    whole = make().generate(asked)
    watch.batches.clear()
    watch.most_rows = 4
    heard: list[EVENT] = []
    same(make().generate(asked, progress=lambda *event: heard.append(event)), whole)
    # Once more with what the text encoders held, then fewer at once.
    assert watch.batches == [10, 10, 6, *[4] * 3, *[4] * 3, *[2] * 3]
    assert [event for event in heard if event[0] == "denoise"][-1] == ("denoise", 9, 9)


def test_a_single_image_that_does_not_fit_is_an_error(
    make: Callable[..., Pipeline], watch: Watch
) -> None:
    watch.most_rows = 1
    pipeline = make()
    with pytest.raises(OutOfMemory, match="unet_step"):
        pipeline.generate(request(num_images_per_prompt=2))
    assert watch.batches == [4, 4, 2]
    pipeline.generate(request(guidance_scale=1.0))  # half the rows


def test_without_guidance_there_is_half_the_work(
    make: Callable[..., Pipeline], watch: Watch
) -> None:
    make().generate(request(guidance_scale=1.0, num_images_per_prompt=3))
    assert watch.batches == [3] * 3


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_what_progress_raises_cancels_and_the_next_request_is_served(
    make: Callable[..., Pipeline], watch: Watch, stage: str
) -> None:
    pipeline = make()

    def stop(at: str, done: int, total: int) -> None:
        if (at, done) == (stage, 0 if stage != "denoise" else 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(request(), progress=stop)
    assert len(watch.batches) == {"text": 0, "denoise": 1, "decode": 3}[stage]
    same(pipeline.generate(request()), make().generate(request()))


def test_close_gives_back_every_engine_and_the_pipeline_opens_them_again(
    make: Callable[..., Pipeline], watch: Watch
) -> None:
    with make() as pipeline:
        before = pipeline.generate(request())
        assert sorted(watch.open) == sorted(
            [
                "text_encoder",
                "text_encoder_2",
                "unet_prompt",
                "unet_timestep",
                "unet_step",
                "vae_decoder",
            ]
        )
        pipeline.generate(request(seed=4))
        assert watch.loads == 6
    assert watch.open == []
    pipeline.close()
    same(pipeline.generate(request()), before)
    assert watch.loads == 12
    pipeline.close()


def test_threads_wait_for_each_other(make: Callable[..., Pipeline]) -> None:
    pipeline = make()
    found: dict[int, Result] = {}

    def draw(seed: int) -> None:
        found[seed] = pipeline.generate(request(seed=seed))

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in range(4):
        same(found[seed], make().generate(request(seed=seed)))


def test_every_choice_is_made_and_told(folder: ModelFolder, make: Callable[..., Pipeline]) -> None:
    defaults = folder.manifest.defaults
    drawn = make().generate(Request(prompt="a star", num_inference_steps=1))
    assert drawn.request.width == defaults.width
    assert drawn.request.height == defaults.height
    assert drawn.request.guidance_scale == defaults.guidance_scale
    assert drawn.request.sampler == "euler"
    assert drawn.request.seed == drawn.seeds
    assert drawn.images[0].size == (defaults.width, defaults.height)
    assert set(drawn.seconds) == {"text", "denoise", "decode"}
    again = make().generate(Request(prompt="a star", num_inference_steps=1))
    assert again.seeds != drawn.seeds, "no seed means a new one"


@pytest.mark.parametrize(
    ("lists", "steps"),
    [({"timesteps": (900.0, 400.0)}, 2), ({"sigmas": (14.6, 5.1, 0.9, 0.0)}, 3)],
)
def test_lists_count_instead_of_steps(
    make: Callable[..., Pipeline], watch: Watch, lists: dict[str, Any], steps: int
) -> None:
    drawn = make().generate(request(num_inference_steps=None, **lists))
    assert drawn.request.num_inference_steps == steps
    assert len(watch.batches) == steps


def test_each_picture_tells_its_own_seed(make: Callable[..., Pipeline]) -> None:
    pipeline = make(tiling="on")
    drawn = pipeline.generate(request(seed=(9, 2), num_images_per_prompt=2, sampler="lms"))
    told = [parse_metadata(image.info[OURS], "picture") for image in drawn.images]
    assert [metadata.request.seed for metadata in told] == [9, 2]
    assert {metadata.request.num_images_per_prompt for metadata in told} == {1}
    assert {metadata.origin.engine for metadata in told} == {"null"}
    for image, metadata in zip(drawn.images, told, strict=True):
        alone = pipeline.generate(metadata.request).images[0]
        np.testing.assert_array_equal(np.asarray(alone), np.asarray(image))
        assert alone.info == image.info


def test_tiles_are_used_where_asked_for(
    make: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    bind = Watched.bind

    def spy(self: Watched, buffers: Buffers, only: Entries | None = None) -> None:
        if self.graph == "vae_decoder":
            seen.append(buffers["latent"].shape)
        bind(self, buffers, only)

    monkeypatch.setattr(Watched, "bind", spy)
    asked = request(width=256, height=136)
    assert make(tiling="on").generate(asked).images[0].size == (256, 136)
    assert len({shape for shape in seen if max(shape) >= 32}) == 0
    seen.clear()
    make(tiling="off").generate(asked)
    assert seen == [(1, 4, 17, 32)]


def test_a_model_that_memory_cannot_hold_is_refused_when_it_is_opened(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(BadInput, match=r"needs about .* of memory"):
        Pipeline.open(folder.path, engine="null")


def test_the_engine_hears_what_it_is_to_be_ready_for_and_tells_how_far_it_is(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[EVENT] = []

    def opened(model: ModelFolder, engine: str, **options: Any) -> NullBackend:
        assert (engine, options["size"]) == ("native", (64, 48))
        options["progress"]("compile", 1, 2)
        return NullBackend(model, precision="float32")

    monkeypatch.setattr(pipeline, "open_backend", opened)
    Pipeline.open(
        folder.path,
        engine="native",
        size=(64, 48),
        progress=lambda *event: heard.append(event),
    ).close()
    assert heard == [("compile", 1, 2)]


def test_a_picture_that_memory_cannot_hold_is_refused_before_any_engine_is_opened(
    make: Callable[..., Pipeline], watch: Watch
) -> None:
    with pytest.raises(BadInput, match="64x48 needs about"):
        make(room=1000).generate(request())
    assert watch.loads == 0


def test_the_folder_must_be_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a model folder"):
        Pipeline.open(tmp_path)


def test_a_result_is_saved_with_its_settings(make: Callable[..., Pipeline], tmp_path: Path) -> None:
    with make() as pipeline:
        result = pipeline.generate(request(num_images_per_prompt=2))
    saved = result.save(tmp_path / "a.png")
    assert saved == [tmp_path / "a-1.png", tmp_path / "a-2.png"]
    assert [read_metadata(path).request.seed for path in saved] == [3, 4]
    with pytest.raises(BadInput, match="exists and is kept"):
        result.save(f"{tmp_path}/a.png")
    assert result.save(f"{tmp_path}/a.png", overwrite=True) == saved
    (bare, _) = result.save(f"{tmp_path}/new/", strip_metadata=True)
    assert bare == tmp_path / "new" / "picture-1.png"
    with pytest.raises(BadInput, match="does not say how it was drawn"):
        read_metadata(bare)


def test_what_is_no_request_or_no_tiling_is_told(make: Callable[..., Pipeline]) -> None:
    wrong: Any = "a red circle"
    with make() as pipeline, pytest.raises(BadInput, match="takes a Request, got str; write Req"):
        pipeline.generate(wrong)
    with pytest.raises(BadInput, match='tiling "maybe" is unknown; one of auto, on, off'):
        make(tiling="maybe")

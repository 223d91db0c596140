"""A request of a size that some graph is not built for is refused before anything is loaded."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from diffusion_rt.command import Parser
from diffusion_rt.engines.cli import add_arguments
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import AT_ONCE
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.buckets import parse_buckets
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.plan_file import open_plan, read_header, write_plan
from diffusion_rt.engines.trt.profiles import Coverage, Range, fixed
from diffusion_rt.runtime.memory import Tiling
from diffusion_rt.runtime.pipeline import Pipeline
from support.tensorrt_bench import COVERAGE, PLAIN, copied, drawn, plan_of

MORE = Coverage(
    buckets=parse_buckets("96x160,160x96,128x128"),
    batch=Range(min=1, opt=1, max=5),
    chunks=Range(min=1, opt=1, max=4),
)
UNET = ("unet_prompt", "unet_timestep", "unet_step")


def interrupted(
    folder: Path, model: ModelFolder, gpu: Gpu, coverage: Coverage, graphs: Sequence[str]
) -> ModelFolder:
    """The model after a build for `coverage` that got no further than these graphs."""
    found = copied(folder, model)
    build(found, coverage, PLAIN, device=gpu.device, made_by="tests", graphs=graphs)
    return found


def refused(model: ModelFolder, gpu: Gpu, *, tiling: Tiling = "auto", **settings: Any) -> str:
    """What is said of a request, for which no plan is loaded."""
    opened = open_trt(model, gpu)
    from diffusion_rt.engines.trt.graphs import TrtGraphs

    def load(self: TrtGraphs, graph: str, precision: object = None) -> NoReturn:
        raise AssertionError(f"{graph} was loaded first")

    with (
        pytest.MonkeyPatch.context() as patch,
        Pipeline(model, opened, tiling=tiling) as pipeline,
    ):
        patch.setattr(TrtGraphs, "open", load)
        with pytest.raises(BadInput) as caught:
            drawn(pipeline, **settings)
    said = str(caught.value)
    assert "\n" not in said
    return said


def command_in(said: str) -> Any:
    """The flags of the build that an error tells to run."""
    parser = Parser(prog="build")
    add_arguments(parser)
    return parser.read(shlex.split(said.rsplit("run: diffusion-rt build ", 1)[1]))


def test_sizes_outside_the_profiles(pipelines: tuple[Pipeline, Pipeline]) -> None:
    _, device = pipelines
    folder = device.folder.path
    for settings, words in (
        ({"width": 136}, ("136x128", "the nearest of these is 128x128")),
        ({"width": 96, "height": 152}, ("96x152", "the nearest of these is 96x160")),
        ({"prompt": "a star " * 60}, ("tokens 128 is not within 32:32:64", "--chunks 1:1:4")),
    ):
        with pytest.raises(BadInput) as caught:
            drawn(device, **settings)
        said = str(caught.value)
        assert all(word in said for word in words), said
        assert f"diffusion-rt build {folder} --engine trt --" in said
    with Pipeline(device.folder, device.backend) as fresh:
        with pytest.raises(BadInput, match="the nearest of these"):
            drawn(fresh, width=136)
        assert not fresh._engines, "a text encoder was loaded first"


def test_engines_that_want_more_pictures_at_once(
    gpu: Gpu, model: ModelFolder, tmp_path: Path
) -> None:
    other = copied(tmp_path / "m", model)
    coverage = replace(COVERAGE, batch=Range(min=4, opt=4, max=4))
    build(other, coverage, PLAIN, device=gpu.device, made_by="tests", graphs=UNET)
    denoiser = open_trt(other, gpu).denoiser()
    with pytest.raises(BadInput, match=r"batch 2 is not within 4:8:8 .* --batch 1:4:4"):
        denoiser.most_images((4, 16, 16), rows=2, tokens=32, images=1)
    assert denoiser.most_images((4, 16, 16), rows=2, tokens=32, images=9) == 4
    # A group of four, and one that is left over: told before the four are drawn.
    assert "batch 2 is not within 4:8:8" in refused(other, gpu, num_images_per_prompt=5)


def test_a_size_that_the_decoder_lacks(model: ModelFolder, gpu: Gpu, tmp_path: Path) -> None:
    """A build for more sizes was interrupted once the UNet was done."""
    half = interrupted(tmp_path / "m", model, gpu, MORE, UNET)
    said = refused(half, gpu, width=160, height=96)
    assert said.startswith("160x96: vae_decoder is built for 128x128,96x160; the nearest of these")
    assert set(parse_buckets(command_in(said).buckets)) == set(MORE.buckets)
    assert (command_in(said).batch, command_in(said).chunks) == ("1:1:5", "1:1:4")
    with pytest.raises(BadInput, match="vae_encoder is built for"):
        open_trt(half, gpu).check("vae_encoder", {"batch": 1, "height": 96, "width": 160})


def test_a_size_of_tiles_that_the_decoder_lacks(model: ModelFolder, gpu: Gpu) -> None:
    said = refused(model, gpu, tiling="on", width=96, height=160)
    assert said.startswith("96x128: the engines are built for 128x128,96x160; the nearest of these")
    with Pipeline(model, open_trt(model, gpu), tiling="on") as pipeline:
        drawn(pipeline, width=128, height=128)


def test_the_nearest_size_is_one_that_all_graphs_have(
    model: ModelFolder, gpu: Gpu, tmp_path: Path
) -> None:
    half = interrupted(tmp_path / "m", model, gpu, MORE, UNET)
    said = refused(half, gpu, width=160, height=104)
    assert "160x104: the engines are built for 96x160,128x128; the nearest of these is 128x128" in (
        said
    )
    wanted = {*MORE.buckets, *parse_buckets("160x104")}
    assert set(parse_buckets(command_in(said).buckets)) == wanted


@pytest.mark.parametrize("graph", ["unet_prompt", "unet_timestep"])
def test_more_pictures_than_a_part_of_the_unet_is_built_for(
    graph: str, model: ModelFolder, gpu: Gpu, tmp_path: Path
) -> None:
    """They are drawn in groups of as many as all parts take."""
    rest = [part for part in UNET if part != graph]
    half = interrupted(tmp_path / "m", model, gpu, MORE, rest)
    count = open_trt(half, gpu).denoiser().most_images
    assert count((4, 16, 16), rows=2, tokens=32, images=5) == COVERAGE.batch.max
    symbol, size = ("batch", 10) if graph == "unet_prompt" else ("n", 10 * AT_ONCE)
    with pytest.raises(BadInput, match=f"^{graph}: {symbol} {size} is not within 1:") as caught:
        open_trt(half, gpu).check(graph, {symbol: size})
    assert command_in(str(caught.value)).batch == "1:1:5"


def test_a_prompt_longer_than_a_part_of_the_unet_is_built_for(
    model: ModelFolder, gpu: Gpu, tmp_path: Path
) -> None:
    half = interrupted(tmp_path / "m", model, gpu, MORE, ["unet_step"])
    said = refused(half, gpu, prompt="a star " * 60)
    assert said.startswith("unet_prompt: tokens 128 is not within 32:32:64")
    assert command_in(said).chunks == "1:1:4"


def test_a_text_encoder_of_another_length(model: ModelFolder, gpu: Gpu, tmp_path: Path) -> None:
    """As a diffusion-rt with other profiles may have left it."""
    other = copied(tmp_path / "m", model)
    folder = plan_of(other, "text_encoder_2").parent
    header = read_header(folder, "text_encoder_2")
    assert header is not None
    with open_plan(folder, "text_encoder_2") as plan:
        data = bytes(plan.data)
    (profile,) = header.key.profiles
    shorter = replace(profile, sizes={**profile.sizes, "tokens": fixed(16)})
    key = replace(header.key, profiles=(shorter,))
    write_plan(folder, replace(header, key=key), data)
    said = refused(other, gpu)
    assert said.startswith("text_encoder_2: tokens 32 is not within 16:16:16")
    assert command_in(said).buckets == "128x128,96x160"

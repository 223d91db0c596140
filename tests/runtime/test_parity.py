"""Pictures against diffusers' own pipeline, in float32, from the same seeds."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray

from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from diffusion_rt.runtime.samplers import SAMPLERS
from support.exported import ExportedModel

MODELS = ("shapes-xl", "plain", "deep", "odd")
CHOSEN = ("euler", "euler-a", "ddim", "dpmpp-2m", "unipc")
SIZES = ((128, 128), (96, 160), (136, 72))  # width and height; the last is odd at every level
PROMPT = "a large red circle above a small blue square on a green background"


@cache
def reference(folder: Path) -> Any:
    """diffusers' pipeline over the same files."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(folder: Path, request: Request) -> NDArray[np.uint8]:
    """The pictures diffusers draws for a request, [images, height, width, 3]."""
    assert isinstance(request.seed, int)
    pipeline = reference(folder)
    scheduler = getattr(diffusers, str(SAMPLERS[request.sampler or "euler"].scheduler))
    # DDIM's default is to clip the denoised latent, which no SDXL was trained for.
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    generators = [
        torch.Generator().manual_seed(request.seed + i)
        for i in range(request.num_images_per_prompt)
    ]
    pictures = pipeline(
        prompt=request.prompt,
        prompt_2=request.prompt_2,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        num_images_per_prompt=request.num_images_per_prompt,
        original_size=request.original_size,
        crops_coords_top_left=request.crops_coords_top_left,
        clip_skip=request.clip_skip,
        generator=generators,
    ).images
    return np.stack([np.asarray(picture) for picture in pictures])


def worst(ours: Pipeline, folder: Path, request: Request) -> int:
    """The largest difference of any pixel, of 255."""
    drawn = np.stack([np.asarray(image) for image in ours.generate(request).images])
    wanted = theirs(folder, request)
    assert drawn.shape == wanted.shape
    assert wanted.std() > 10, "a flat picture proves nothing"
    return int(np.abs(drawn.astype(int) - wanted).max())


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, exported_model: ExportedModel) -> Path:
    return SHIPPED if request.param == "shapes-xl" else exported_model(request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Iterator[Pipeline]:
    with Pipeline.open(folder, engine="ort", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("sampler", CHOSEN)
def test_pictures_are_those_of_diffusers(pipeline: Pipeline, folder: Path, sampler: str) -> None:
    for width, height in SIZES:
        for images in (1, 3):
            request = Request(
                prompt=PROMPT,
                width=width,
                height=height,
                num_inference_steps=6,
                guidance_scale=4.0,
                sampler=sampler,
                seed=11,
                num_images_per_prompt=images,
            )
            assert worst(pipeline, folder, request) <= 1, request


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"negative_prompt": ""},
        {"negative_prompt": "a star", "guidance_rescale": 0.7},
        {"prompt_2": "a dark sea"},
        {"clip_skip": 1},
        {"original_size": (64, 64), "crops_coords_top_left": (8, 0)},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_mean_what_they_mean_to_diffusers(
    pipeline: Pipeline, folder: Path, settings: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 4, "seed": 2}
    request = Request(prompt=PROMPT, width=128, height=96, sampler="euler", **(base | settings))
    assert worst(pipeline, folder, request) <= 1


def test_an_image_of_a_batch_is_the_image_of_its_seed(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "sampler": "euler-a"}
    batch = pipeline.generate(Request(**settings, seed=5, num_images_per_prompt=3)).images
    alone = pipeline.generate(Request(**settings, seed=7)).images[0]
    difference = np.abs(np.asarray(batch[2]).astype(int) - np.asarray(alone))
    assert difference.max() <= 1

"""diffusers as a contender, eager or compiled, as its documentation says it is fastest on a CPU."""

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch._inductor import config as inductor

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Outcome, Watch, own_peak_rss
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.samplers import SAMPLERS, sampler_name


class Diffusers:
    """`StableDiffusionXLPipeline` in float32, with scaled dot-product attention, on the CPU.

    Its own draws come of the generators of the seeds, as ours do.
    """

    name = "diffusers"

    def __init__(self, *, model: Path, threads: int, clock: Clock = time.perf_counter) -> None:
        """Load the model folder, which is a diffusers checkpoint too."""
        torch.set_num_threads(threads)
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self._pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
            model, torch_dtype=torch.float32, local_files_only=True, add_watermarker=False
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._schedule = dict(self._pipeline.scheduler.config)
        self._clock = clock
        self._watch = Watch(clock)
        self._prepare()
        pipeline = self._pipeline
        for module, measure in (
            (pipeline.text_encoder, "text"),
            (pipeline.text_encoder_2, "text"),
            (pipeline.unet, "evaluation"),
        ):
            module.forward = self._timed(module.forward, measure)
        pipeline.vae.decode = self._timed(pipeline.vae.decode, "decode")

    def run(self, case: Case) -> Outcome:
        """Draw the pictures of the case."""
        scheduler = SAMPLERS[sampler_name(case.sampler)].scheduler
        if scheduler is None:
            raise BadInput(f"sampler {case.sampler}: diffusers has none of it; leave it out")
        self._pipeline.scheduler = getattr(diffusers, scheduler).from_config(self._schedule)
        watch = self._watch = Watch(self._clock)
        latents: list[NDArray[np.float32]] = []

        def report(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch.mark("step")
            latents[:] = [tensors["latents"].numpy()]
            return tensors

        with watch("picture"):
            generators = [torch.Generator().manual_seed(seed) for seed in case.seeds]
            images = self._pipeline(
                prompt=case.prompt,
                width=case.width,
                height=case.height,
                num_inference_steps=case.steps,
                guidance_scale=case.guidance_scale,
                num_images_per_prompt=case.images,
                generator=generators,
                callback_on_step_end=report,
            ).images
        pixels = np.stack([np.asarray(image) for image in images])
        return Outcome({"latents": latents[0], "pixels": pixels}, watch.result())

    def peak_rss(self) -> int | None:
        """The most memory that this process ever held, in bytes."""
        return own_peak_rss()

    def close(self) -> None:
        """Let go of the networks."""
        self._pipeline = None

    def _prepare(self) -> None:
        """What is done to the pipeline once, before it is timed."""

    def _timed(self, function: Callable[..., Any], measure: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            with self._watch(measure):
                return function(*arguments, **named)

        return run


class Compiled(Diffusers):
    """The same under torch.compile: Inductor's C++ for the CPU, which needs a compiler.

    The UNet and the VAE's decoder are compiled with weights frozen and kernels tuned, as PyTorch's
    tutorial for CPUs has it. On `shapes-xl` a step of that took half as long as by the defaults;
    fused projections and channels last, which help GPUs, made it no faster.
    """

    name = "compile"

    def _prepare(self) -> None:
        inductor.freezing = True
        options: Any = {"mode": "max-autotune", "fullgraph": True, "dynamic": False}
        pipeline = self._pipeline
        pipeline.unet = torch.compile(pipeline.unet, **options)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, **options)

"""diffusers as a contender, eager or compiled, as its documentation says it is fastest."""

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Outcome, Watch, own_peak_rss
from diffusion_rt.bench.gpu_chip import own_peak_device
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.export.checkpoint import INDEX, MAX_JSON
from diffusion_rt.runtime.samplers import SAMPLERS, sampler_name

# What draws a picture, by the class that a checkpoint names, and what else it is told.
PIPELINES: dict[str, dict[str, Any]] = {
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "StableDiffusionXLImg2ImgPipeline": {"add_watermarker": False},
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
}
# Of Inductor on a GPU, by diffusers' guide to speed ("Accelerate inference").
FLAGS = {
    "conv_1x1_as_mm": True,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
    "epilogue_fusion": False,
}
SHAPES = 64  # that one process compiles for; PyTorch's own limit of 8 is meant for mistakes
STRENGTH = 0.3  # of what redraws a picture, the refiner: its pipeline's own default


class Diffusers:
    """A pipeline of diffusers with scaled dot-product attention: float32 on a CPU, half on a GPU.

    Its own draws come of the generators of the seeds, as ours do. The refiner, which only redraws,
    is given random pixels of the same seed.
    """

    name = "diffusers"

    def __init__(
        self,
        *,
        model: Path,
        threads: int,
        device: str = "cpu",
        dtype: str | None = None,
        exact: bool = True,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Load the model folder, which is a diffusers checkpoint too.

        `dtype` is that of torch, float32 or float16. `exact` waits for the device at the end of
        each stage, without which the stages of a GPU are not told apart.
        """
        torch.set_num_threads(threads)
        dtype = dtype or ("float16" if device == "cuda" else "float32")
        if device == "cuda" and not torch.cuda.is_available():
            raise BadInput("--device cuda: this PyTorch sees no GPU; install its CUDA build")
        if dtype == "float32":  # as the reference it is to be that, and not a shorter format
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        kind = pipeline_of(model)
        self._redraws = "Img2Img" in kind
        self._wait = exact and device == "cuda"
        self._device = device
        self._pipeline: Any = getattr(diffusers, kind).from_pretrained(
            model, torch_dtype=getattr(torch, dtype), local_files_only=True, **PIPELINES[kind]
        )
        self._pipeline.to(device)
        if dtype == "float16" and self._pipeline.vae.config.force_upcast:
            _decode_in_bfloat16(self._pipeline.vae)
        self._pipeline.set_progress_bar_config(disable=True)
        self._schedule = dict(self._pipeline.scheduler.config)
        self._clock = clock
        self._watch = Watch(clock)
        self._prepare()
        pipeline = self._pipeline
        for name, measure in (
            ("text_encoder", "text"),
            ("text_encoder_2", "text"),
            ("unet", "evaluation"),
        ):
            if (module := getattr(pipeline, name, None)) is not None:
                module.forward = self._timed(module.forward, measure)
        pipeline.vae.decode = self._timed(pipeline.vae.decode, "decode")

    def run(self, case: Case) -> Outcome:
        """Draw the pictures of the case."""
        scheduler = SAMPLERS[sampler_name(case.sampler)].scheduler
        if scheduler is None:
            raise BadInput(f"sampler {case.sampler}: diffusers has none of it; leave it out")
        self._pipeline.scheduler = getattr(diffusers, scheduler).from_config(self._schedule)
        watch = self._watch = Watch(self._clock)
        latents: list[torch.Tensor] = []

        def report(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._synchronize()
            watch.mark("step")
            latents[:] = [tensors["latents"]]
            return tensors

        given: dict[str, Any] = {"width": case.width, "height": case.height}
        if self._redraws:
            given = {"image": self._start(case), "strength": STRENGTH}
        with watch("picture"):
            generators = [torch.Generator().manual_seed(seed) for seed in case.seeds]
            images = self._pipeline(
                prompt=case.prompt,
                num_inference_steps=case.steps,
                guidance_scale=case.guidance_scale,
                num_images_per_prompt=case.images,
                generator=generators,
                callback_on_step_end=report,
                **given,
            ).images
        found: NDArray[np.float32] = latents[0].float().cpu().numpy()
        pixels = np.stack([np.asarray(image) for image in images])
        return Outcome({"latents": found, "pixels": pixels}, watch.result())

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """What this process holds on the GPU, in bytes."""
        return own_peak_device()

    def close(self) -> None:
        """Let go of the networks."""
        self._pipeline = None

    def _prepare(self) -> None:
        """What is done to the pipeline once, before it is timed."""

    def _start(self, case: Case) -> torch.Tensor:
        """The picture that is redrawn, [1, 3, height, width] from 0 to 1."""
        draw = torch.Generator().manual_seed(case.seed)
        return torch.rand(1, 3, case.height, case.width, generator=draw)

    def _synchronize(self) -> None:
        if self._wait:
            torch.cuda.synchronize()

    def _timed(self, function: Callable[..., Any], measure: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            with self._watch(measure):
                found = function(*arguments, **named)
                self._synchronize()
                return found

        return run


class Compiled(Diffusers):
    """The same under torch.compile: Inductor's C++ on a CPU, which needs a compiler, or Triton.

    The UNet and the VAE's decoder are compiled with kernels tuned. On a CPU weights are frozen, as
    PyTorch's tutorial for CPUs has it: on `shapes-xl` a step of that took half as long as by the
    defaults, and fused projections and channels last made it no faster. On a GPU both, and FLAGS,
    are what diffusers' documentation has for speed.
    """

    name = "compile"

    def _prepare(self) -> None:
        pipeline = self._pipeline
        if self._device == "cuda":
            for flag, value in FLAGS.items():
                setattr(inductor, flag, value)
            pipeline.fuse_qkv_projections()
            for network in (pipeline.unet, pipeline.vae):
                network.to(memory_format=torch.channels_last)
        pipeline.unet = compiled(pipeline.unet, frozen=self._device == "cpu")
        pipeline.vae.decode = compiled(pipeline.vae.decode, frozen=self._device == "cpu")


def compiled(function: Any, *, frozen: bool = True) -> Any:
    """A network or a function of one under torch.compile, tuned, for each shape anew.

    On a CPU weights are `frozen`.
    """
    if frozen:
        inductor.freezing = True
    dynamo.recompile_limit = SHAPES
    return torch.compile(function, mode="max-autotune", fullgraph=True, dynamic=False)


def _decode_in_bfloat16(vae: Any) -> None:
    """A VAE that overflows in float16, as ours decodes it: not in float32, which takes longer."""
    vae.to(torch.bfloat16)
    decode = vae.decode

    @wraps(decode)
    def cast(latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return decode(latents.to(torch.bfloat16), *arguments, **named)

    vae.decode = cast


def pipeline_of(model: Path) -> str:
    """The pipeline that a checkpoint names; BadInput where it is none of PIPELINES."""
    path = model / INDEX
    index = strict_json.parse(read_bytes(path, MAX_JSON), str(path))
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in PIPELINES:
        raise BadInput(f"{path}: {shown(kind)} is not measured; one of {', '.join(PIPELINES)}")
    return str(kind)

"""Prompt to picture: the stages in the order a prompt meets them."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import fspath
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_rt.engines.choose import open_backend
from diffusion_rt.engines.errors import BadInput, OutOfMemory, shown
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.protocol import Backend, Engine
from diffusion_rt.runtime.conditioning import Conditioner, Conditioning
from diffusion_rt.runtime.decode import Decoder
from diffusion_rt.runtime.denoise import Guidance, denoise, denoise_on_device
from diffusion_rt.runtime.memory import Fit, Tiling, budget, fit, fit_device
from diffusion_rt.runtime.noise import NoiseSource, make_noise
from diffusion_rt.runtime.picture import describe, save_pictures
from diffusion_rt.runtime.plan import Plan
from diffusion_rt.runtime.request import Request
from diffusion_rt.runtime.samplers import make_plan, sampler_name
from diffusion_rt.runtime.unet import Unet

if TYPE_CHECKING:
    from diffusion_rt.engines.native.forecast import Forecast, Forecaster

SHIPPED = Path(__file__).parent / "models" / "shapes-xl"

Latents = NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The pictures of one request, in order, with what is needed to draw each again."""

    images: tuple[Image.Image, ...]  # RGB; metadata in `.info`
    latents: Latents  # [images, c, h, w] float32, scaled as the UNet knows them
    seeds: tuple[int, ...]
    request: Request  # as asked for, with every choice the model made filled in
    seconds: Mapping[str, float]  # by stage

    def save(
        self, output: str | Path, *, overwrite: bool = False, strip_metadata: bool = False
    ) -> list[Path]:
        """Save the pictures as `generate --output` does, with their settings; their paths.

        `output` is a name that ends in .png (several pictures: NAME-1.png …), or a folder, for
        picture-1.png and so on; one that ends in a slash is made. Raises BadInput where a file
        exists, unless `overwrite`, or cannot be written.
        """
        saved = save_pictures(
            self.images, fspath(output), overwrite=overwrite, strip_metadata=strip_metadata
        )
        return list(saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request with every choice made, and what follows from it before any engine runs."""

    request: Request
    seeds: tuple[int, ...]
    plan: Plan
    guidance: Guidance
    room: Fit
    forecast: "Forecast | None" = None  # of device memory, where that has a budget


class Pipeline:
    """A model folder opened on one engine. One request at a time; other threads wait."""

    def __init__(
        self,
        folder: ModelFolder,
        backend: Backend,
        *,
        tiling: Tiling = "auto",
        room: int | None = None,
        memory: int | None = None,
    ) -> None:
        """Engines are opened when first needed and kept until `close`.

        `room` is how many bytes activations may take (see `memory.budget`), None for no limit. It
        holds as long as the pipeline, so that a request is always cut in the same way. `memory` is
        the budget of device memory that `backend` was opened with.
        """
        if tiling not in get_args(Tiling):
            raise BadInput(f"tiling {shown(tiling)} is unknown; one of auto, on, off")
        self.folder = folder
        self.backend = backend
        self._tiling = tiling
        self._room = room
        self._memory = memory
        self._forecaster: Forecaster | None = None
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._denoiser = backend.denoiser()
        self._conditioner: Conditioner | None = None
        self._decoder = Decoder(
            self._open_decoder,
            folder.manifest.vae,
            lambda: self._make_room("decode"),
            backend.decoder(),
        )
        self._holding: set[str] = set()  # stages that have taken memory and keep it
        self._own = False  # whether the backend is closed with the pipeline
        self._over = False

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        *,
        engine: str = "auto",
        threads: int | None = None,
        provider: str | None = None,
        tiling: Tiling = "auto",
        memory: int | None = None,
        trust: bool = False,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Open an exported model folder, or the small one that ships where `model` is None.

        `engine` is `auto`, `ort`, `trt` or `native`; `provider` is ONNX Runtime's device, `cpu` or
        `cuda`. `tiling` says whether the VAE decodes in tiles (`on`, `off`); `auto` does where one
        pass would not fit the memory there is. `memory` is how many bytes of device memory the
        native engine may take at most. TensorRT engines are native code: those that somebody else
        built run only with `trust`, which is remembered for these very files. `size`, the width and
        height in pixels that are drawn first, is what the native engine compiles kernels for before
        this returns, the model's own size where it is None; `progress(stage, done, total)` hears of
        that as `compile`. Raises BadInput where
        folder or engine cannot be used, and where memory cannot hold the weights.
        """
        folder = open_model(SHIPPED if model is None else Path(model))
        backend = open_backend(
            folder,
            engine,
            threads=threads,
            provider=provider,
            memory=memory,
            trust=trust,
            size=size,
            progress=progress or _silent,
        )
        on_host = provider != "cuda" and backend.denoiser() is None
        room = budget(folder) if on_host else None  # the host's memory, not a GPU's
        pipeline = cls(folder, backend, tiling=tiling, room=room, memory=memory)
        pipeline._own = True
        return pipeline

    def generate(self, request: Request, *, progress: Progress | None = None) -> Result:
        """Draw the pictures of one request.

        `progress(stage, done, total)` hears of the stages `text`, `denoise` and `decode`; an
        exception it raises cancels the request before the next evaluation of the UNet. Raises
        BadInput where the model cannot take the request, Fault where the arithmetic fails.
        """
        with self._lock:
            if self._over:
                raise BadInput("the pipeline ended with its `with` block; open it again")
            return self._generate(self.settle(request), progress or _silent)

    def settle(self, request: Request) -> Job:
        """Make every choice that a request leaves open, from the manifest; runs no engine.

        Raises BadInput where the model cannot take the request or memory cannot hold it.
        """
        if not isinstance(request, Request):
            kind = type(request).__name__
            raise BadInput(f"generate takes a Request, got {kind}; write Request(prompt='…')")
        manifest, defaults = self.folder.manifest, self.folder.manifest.defaults
        width, height = request.width or defaults.width, request.height or defaults.height
        steps, scale = request.num_inference_steps, request.guidance_scale
        if steps is None:
            steps = defaults.steps
        if scale is None:
            scale = defaults.guidance_scale
        sampler = sampler_name(request.sampler or manifest.schedule.scheduler)
        seeds = tuple(request.seeds(first=secrets.randbelow(2**32)))
        guidance = Guidance(scale, request.guidance_rescale)
        levels = request.sigmas if isinstance(request.sigmas, tuple) else None
        plan = make_plan(
            manifest.schedule,
            sampler=sampler,
            steps=steps,
            spacing=request.spacing,
            sigmas=request.sigmas if isinstance(request.sigmas, str) else None,
            custom_sigmas=levels,
            timesteps=request.timesteps,
            eta=request.eta,
        )
        if levels is not None:  # lists count instead of steps
            steps = len(levels) - 1
        elif request.timesteps is not None:
            steps = len(request.timesteps)
        room = fit(
            manifest,
            width=width,
            height=height,
            rows=guidance.rows,
            images=len(seeds),
            tiling=self._tiling,
            room=self._room,
        )
        forecast = None
        if self._memory is not None:
            room, forecast = fit_device(
                self._known_forecaster(),
                room,
                rows=guidance.rows,
                tokens=max(encoder.max_length for encoder in manifest.text_encoders),
                tiling=self._tiling,
                memory=self._memory,
            )
        return Job(
            request=replace(
                request,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=scale,
                sampler=sampler,
                seed=seeds,
            ),
            seeds=seeds,
            plan=plan,
            guidance=guidance,
            room=room,
            forecast=forecast,
        )

    def close(self) -> None:
        """Give back every engine; they open again when the pipeline is used again."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            if self._denoiser is not None:
                self._denoiser.close()
            self._conditioner = None
            self._decoder.close()
            self._holding.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, and give back the device that `open` took: it is used no more."""
        self.close()
        if self._own and not self._over:
            self._over = True
            self.backend.close()

    def _generate(self, job: Job, progress: Progress) -> Result:
        watch = Stopwatch()
        with watch("text"):
            self._check_size(job)
            progress("text", 0, 1)
            self._prepare_decoder(job)
            conditioning = self._condition(job)
            progress("text", 1, 1)
        with watch("denoise"):
            latents = self._denoise(job, conditioning, progress)
        with watch("decode"):
            self._holding.add("decode")
            images = self._decode(latents, job.room, progress)
        for image, seed in zip(images, job.seeds, strict=True):
            one = replace(job.request, seed=seed, num_images_per_prompt=1)
            image.info.update(
                describe(one, self.folder, self.backend.name, tile=self._decoder.tile)
            )
        return Result(
            images=tuple(images),
            latents=latents,
            seeds=job.seeds,
            request=job.request,
            seconds=watch.seconds,
        )

    def _check_size(self, job: Job) -> None:
        """Raise BadInput for a size that one of the graphs is not built for; nothing is loaded."""
        for encoder in self.folder.manifest.text_encoders:
            self.backend.check(encoder.graph, {"tokens": encoder.max_length})
        if self._denoiser is not None:
            tokens = self._texts().tokens(job.request, guided=job.guidance.rows == 2)
            images = len(job.seeds)
            most = self._most_images(job, tokens, min(images, job.room.group))
            if rest := images % most:  # the last group is smaller
                self._most_images(job, tokens, rest)
        _, height, width = job.room.latent_shape
        tile = job.room.tile or max(height, width)
        sides = {"height": min(height, tile), "width": min(width, tile)}
        self.backend.check("vae_decoder", {"batch": 1, **sides})

    def _prepare_decoder(self, job: Job) -> None:
        """Raise BadInput for a size that the decoder does not take, before anything is drawn.

        It is bound where it fits: it wants the most of the memory that engines of a device share,
        and what is captured before that grows has to be captured again.
        """
        if self._denoiser is not None:
            _, height, width = job.room.latent_shape
            if self._decoder.prepare((height, width), job.room.tile):
                self._holding.add("decode")

    def _texts(self) -> Conditioner:
        if self._conditioner is None:
            self._conditioner = Conditioner(self.folder, self._engine)
        return self._conditioner

    def _condition(self, job: Job) -> Conditioning:
        self._holding.add("text")
        while True:
            try:
                return self._texts()(job.request, guided=job.guidance.rows == 2)
            except OutOfMemory:
                if not self._make_room("text"):
                    raise

    def _denoise(self, job: Job, conditioning: Conditioning, progress: Progress) -> Latents:
        """Latents [images, c, h, w], in groups of as many images as there is room for.

        Engines built for fewer get groups of as many. Those that run out of memory all the same
        get what other stages held, then groups of half the size.
        """
        self._holding.add("denoise")
        seeds, size = job.seeds, job.room.group
        done: list[Latents] = []
        while seeds:
            tokens, wanted = conditioning.context.shape[1], min(size, len(seeds))
            most = self._most_images(job, tokens, wanted)
            # Of a budget the forecast knows that these fit once the other stages hold nothing.
            if most < wanted and job.forecast is not None and self._make_room("denoise"):
                continue
            size = min(size, most)
            groups = len(done) + -(-len(seeds) // size)

            def report(evaluation: int, evaluations: int, groups: int = groups) -> None:
                progress("denoise", len(done) * evaluations + evaluation, groups * evaluations)

            noise = [make_noise(job.request.rng, seed) for seed in seeds[:size]]
            try:
                done.append(self._denoise_group(job, conditioning, noise, report))
            except OutOfMemory:
                if self._make_room("denoise"):
                    continue
                if len(noise) == 1:
                    raise
                size = -(-len(noise) // 2)
                continue
            seeds = seeds[size:]
        return np.concatenate(done)

    def _most_images(self, job: Job, tokens: int, images: int) -> int:
        """How many of the images left the engine denoises together."""
        if self._denoiser is None:
            return images
        return self._denoiser.most_images(
            job.room.latent_shape, rows=job.guidance.rows, tokens=tokens, images=images
        )

    def _denoise_group(
        self,
        job: Job,
        conditioning: Conditioning,
        noise: Sequence[NoiseSource],
        report: Callable[[int, int], None],
    ) -> Latents:
        """Latents of one group: by the device's own loop where it has one, else by the host's."""
        plan, guidance, shape = job.plan, job.guidance, job.room.latent_shape
        if self._denoiser is not None:
            return denoise_on_device(
                self._denoiser, conditioning, plan, noise, shape, guidance, report
            )
        unet = Unet(*(self._engine(f"unet_{part}") for part in ("prompt", "timestep", "step")))
        unet.prepare(conditioning, plan.timesteps, len(noise), shape)
        return denoise(unet, plan, noise, shape, guidance, report)

    def _decode(self, latents: Latents, room: Fit, progress: Progress) -> list[Image.Image]:
        images = []
        for index, latent in enumerate(latents):
            progress("decode", index, len(latents))
            images.append(Image.fromarray(self._decoder.decode(latent, room.tile)))
        progress("decode", len(latents), len(latents))
        return images

    def _known_forecaster(self) -> "Forecaster":
        from diffusion_rt.engines.native.backend import usual_precision
        from diffusion_rt.engines.native.forecast import Forecaster

        if self._forecaster is None:
            self._forecaster = Forecaster(self.folder, usual_precision(self.folder))
        return self._forecaster

    def _make_room(self, stage: str) -> bool:
        """Close what the other stages hold, to be opened again; whether there was anything.

        So a device that holds every part keeps them, and a smaller one takes them in turn.
        """
        others = self._holding - {stage}
        self._holding &= {stage}
        if "decode" in others:
            self._decoder.close()
        if "denoise" in others and self._denoiser is not None:
            self._denoiser.close()
        for graph in list(self._engines):
            if ("denoise" if graph.startswith("unet_") else "text") in others:
                self._engines.pop(graph).close()
        if "text" in others:
            self._conditioner = None
        return bool(others)

    def _engine(self, graph: str) -> Engine:
        if graph not in self._engines:
            self._engines[graph] = self.backend.load(graph)
        return self._engines[graph]

    def _open_decoder(self, guarded: bool) -> Engine:
        return self.backend.load("vae_decoder", "float32" if guarded else None)


class Stopwatch:
    """Seconds spent, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""

"""The denoising loop on a device: the host enqueues evaluations, and waits only to stay close.

Conditioning and timesteps run through their parts of the UNet once, before the first evaluation;
what they give stays on the device.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.bucket import Bucket, Size
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import Pinned
from diffusion_rt.engines.device.noise import NoiseStream
from diffusion_rt.engines.device.protocol import AHEAD, DeviceEngine, DeviceGraphs
from diffusion_rt.engines.device.recent import Recent
from diffusion_rt.engines.errors import BadInput, OutOfMemory, not_finite
from diffusion_rt.engines.protocol import Buffers, Evaluations
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.step_table import ALL_FINITE, CURSOR

Array = NDArray[np.float32]
Report = Callable[[int, int], None]

KEPT = 4
"""Sizes whose memory and captured evaluation are kept, the latest used."""

PROMPT = ("context", "text_embeds", "time_ids")


class DeviceDenoiser:
    """The `Denoiser` of TensorRT and of the native engine."""

    def __init__(self, graphs: DeviceGraphs, gpu: Gpu, *, kept: int = KEPT) -> None:
        """Open nothing yet; `kept` is how many sizes stay captured."""
        self._graphs = graphs
        self._gpu = gpu
        self._kept = kept
        self._loop: _Loop | None = None

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        """How many images are denoised together, as the engine has it."""
        return self._graphs.most_images(latent_shape, rows=rows, tokens=tokens, images=images)

    def __call__(
        self,
        *,
        conditioning: Buffers,
        evaluations: Evaluations,
        guidance_scale: float,
        guidance_rescale: float,
        start: Array,
        noise: Iterable[Array],
        report: Report,
    ) -> Array:
        """The latents after the last evaluation; see `engines.protocol.Denoiser`."""
        rows, tokens, _ = conditioning["context"].shape
        images, channels, height, width = start.shape
        size = Size(rows=rows, images=images, latent_shape=(channels, height, width), tokens=tokens)
        guidance = (guidance_scale, guidance_rescale)
        with translated("denoise"):
            if self._loop is None:
                self._loop = _Loop(self._graphs, self._gpu, self._kept)
            return self._loop.run(size, conditioning, evaluations, guidance, start, noise, report)

    def close(self) -> None:
        """Give back the engines and the memory of every size."""
        if self._loop is not None:
            with translated("denoise"):
                self._loop.close()
        self._loop = None


class _Loop:
    """Open engines, a stream, and the sizes used last."""

    def __init__(self, graphs: DeviceGraphs, gpu: Gpu, kept: int) -> None:
        self._graphs, self._gpu = graphs, gpu
        device = gpu.device
        with ExitStack() as held:
            self._stream = held.enter_context(device.stream())
            self._passed = [held.enter_context(device.event()) for _ in range(AHEAD)]
            self._sent = held.enter_context(closing(Pinned(device)))
            self._fetched = held.enter_context(closing(Pinned(device)))
            self._noise = held.enter_context(closing(NoiseStream(device)))
            # Never bound: they keep the weights while sizes come and go.
            for engine in open_parts(graphs):
                held.enter_context(closing(engine))
            self._held = held.pop_all()
        self._buckets: Recent[Size, Bucket] = Recent(kept)

    def run(
        self,
        size: Size,
        conditioning: Buffers,
        evaluations: Evaluations,
        guidance: tuple[float, float],
        start: Array,
        noise: Iterable[Array],
        report: Report,
    ) -> Array:
        count = len(evaluations.timesteps)
        try:
            bucket = self._bucket(size, count)
            if evaluations.draws.any():
                self._noise.reserve(bucket.noise_row(0).nbytes)
            transfers = bucket.fill(self._stream, evaluations, guidance, start)
            for name in PROMPT:
                place = bucket.prompt[name]
                values = np.repeat(conditioning[name], size.images, axis=0)
                transfers.append((place, values.astype(place.dtype, copy=False)))
            self._sent.send(self._stream, transfers)
            bucket.begin(self._stream, count)
            self._evaluate(bucket, evaluations.draws, iter(noise), report)
            latents, counter = self._fetched.fetch(self._stream, bucket.result)
        except BaseException:
            for waits in (self._noise.synchronize, self._stream.synchronize):
                with suppress(driver.DeviceError):  # the first error is the one to tell
                    waits()
            raise
        bad = int(counter.view(CURSOR)[0]["bad"])
        if bad != ALL_FINITE:
            raise not_finite(bad + 1, count)
        return latents.view(np.float32).reshape(start.shape).copy()

    def _evaluate(
        self, bucket: Bucket, draws: NDArray[np.bool_], noise: Iterator[Array], report: Report
    ) -> None:
        """Enqueue evaluations, at most so many ahead, and tell which are done."""
        count = len(draws)
        report(0, count)
        for index, drawn in enumerate(draws):
            if index >= AHEAD:
                self._wait(index - AHEAD)
                report(index - AHEAD + 1, count)
            if drawn:
                self._noise.send(self._stream, index, bucket.noise_row(index), next(noise))
            bucket.evaluate(self._stream)
            self._stream.record(self._passed[index % AHEAD])
        for index in range(max(count - AHEAD, 0), count):
            self._wait(index)
            report(index + 1, count)

    def _wait(self, index: int) -> None:
        self._passed[index % AHEAD].synchronize()

    def _bucket(self, size: Size, evaluations: int) -> Bucket:
        """The memory for a size, made or found, and engines bound to it.

        What binds may move scratch memory, so nothing is under way yet.
        """
        try:
            return self._buckets.use(
                size, lambda: self._make(size), lambda bucket: bucket.reserve(evaluations)
            )
        except OutOfMemory as error:
            raise self._too_large(size, str(error)) from None

    def _make(self, size: Size) -> Bucket:
        return Bucket(self._gpu, size, *open_parts(self._graphs))

    def _too_large(self, size: Size, said: str) -> OutOfMemory:
        _, height, width = size.latent_shape
        what = f"{size.images} image{'s' * (size.images > 1)} of {width}x{height} latents"
        return OutOfMemory(
            f"denoise {what}: {said}; ask for fewer images at once, or for a smaller size, or end "
            "what else uses the GPU (nvidia-smi)"
        )

    def close(self) -> None:
        self._stream.synchronize()
        self._buckets.close()
        self._held.close()


def open_parts(graphs: DeviceGraphs) -> list[DeviceEngine]:
    """The three parts of the UNet (prompt, timestep, step), or none of them."""
    opened: list[DeviceEngine] = []
    try:
        for name in ("unet_prompt", "unet_timestep", "unet_step"):
            opened.append(graphs.open(name))
        check_parts(*opened)
    except BaseException:
        for engine in opened:
            engine.close()
        raise
    return opened


def check_parts(prompt: DeviceEngine, timestep: DeviceEngine, step: DeviceEngine) -> None:
    """Raise BadInput where the three parts of the UNet do not fit together."""
    made = {**prompt.outputs, **timestep.outputs}
    added = made.pop("added", None)
    fits = (
        prompt.inputs.keys() == set(PROMPT)
        and timestep.inputs.keys() == {"timestep", "added"}
        and added is not None
        and added.dtype == timestep.inputs["added"].dtype
        and step.inputs.keys() == made.keys() | {"latent"}
        and step.outputs.keys() == {"prediction"}
        and all(step.inputs[name].dtype == spec.dtype for name, spec in made.items())
    )
    if not fits:
        raise BadInput(
            "the three parts of the UNet do not fit together; build its engines again, where there "
            "are any, or export the model again"
        )

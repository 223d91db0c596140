"""Ourselves as a contender: the pipeline, with a watch on every engine."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Outcome, Watch, own_peak_rss
from diffusion_rt.bench.flags import IDLE
from diffusion_rt.bench.gpu_chip import own_peak_device
from diffusion_rt.bench.idle import LoopClock, open_idle
from diffusion_rt.engines.choose import open_backend
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.protocol import Backend, Buffers, Denoiser, Engine, Entries, PixelDecoder
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.runtime.pipeline import Pipeline

# ONNX graph -> the measure that its runs count for.
GRAPHS = {
    "text_encoder": "text",
    "text_encoder_2": "text",
    "unet_prompt": "prompt",
    "unet_timestep": "timestep",
    "unet_step": "evaluation",
    "vae_decoder": "decode",
}


class Ours:
    """`Pipeline.generate`, warm: engines stay open from one case to the next."""

    name = "diffusion-rt"
    _idle = False

    def __init__(
        self,
        *,
        model: Path,
        threads: int,
        engine: str = "ort",
        device: str = "cpu",
        clock: Clock = time.perf_counter,
    ) -> None:
        """Open the model. Raises BadInput where that cannot be."""
        folder = open_model(model)
        provider = device if engine == "ort" else None
        self._idle = engine in IDLE
        if self._idle:
            backend: Backend = open_idle(folder, engine)
        else:
            backend = open_backend(folder, engine, threads=threads, provider=provider)
        self._backend = TimedBackend(backend, clock if self._idle else None)
        self._pipeline = Pipeline(folder, self._backend)
        self._clock = clock

    def run(self, case: Case) -> Outcome:
        """Draw the pictures of the case."""
        watch = self._backend.watch = Watch(self._clock)

        def report(stage: str, done: int, total: int) -> None:
            # The mark before the first evaluation would only begin a lap; see `Watch.result`.
            if stage == "denoise" and done:
                watch.mark("step")

        with watch("picture"):
            result = self._pipeline.generate(case.request, progress=report)
        pixels = np.stack([np.asarray(image) for image in result.images])
        return Outcome({"latents": result.latents, "pixels": pixels}, watch.result())

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """What this process holds on the GPU, in bytes; of one that does nothing, None."""
        return None if self._idle else own_peak_device()

    def close(self) -> None:
        """Close every engine, and give the device back."""
        self._pipeline.close()
        self._backend.close()


class TimedBackend:
    """A backend whose engines tell `watch` how long they ran."""

    def __init__(self, backend: Backend, loop: Clock | None = None) -> None:
        """Watch every engine that `backend` loads; with `loop`, a device's denoising loop too."""
        self.watch = Watch()
        self._backend = backend
        self._loop = loop

    @property
    def name(self) -> str:
        """That of the backend."""
        return self._backend.name

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """An engine of the backend, watched."""
        return TimedEngine(self._backend.load(graph, precision), GRAPHS[graph], self)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """As the backend."""
        self._backend.check(graph, sizes)

    def denoiser(self) -> Denoiser | None:
        """That of the backend, its evaluations timed together where that is wanted."""
        denoiser = self._backend.denoiser()
        if denoiser is None or self._loop is None:
            return denoiser
        return LoopClock(denoiser, lambda seconds: self.watch.add("own", seconds), self._loop)

    def decoder(self) -> PixelDecoder | None:
        """That of the backend, watched."""
        decoder = self._backend.decoder()
        return None if decoder is None else TimedDecoder(decoder, self)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


class TimedDecoder:
    """A decoder of pixels, and a lap of the watch for each picture."""

    def __init__(self, decoder: PixelDecoder, backend: TimedBackend) -> None:
        """Count its runs as those of the VAE decoder."""
        self._decoder, self._backend = decoder, backend

    def prepare(
        self, latent: tuple[int, ...], pixels: tuple[int, ...], precision: Precision | None = None
    ) -> None:
        """Make ready, which is no run."""
        self._decoder.prepare(latent, pixels, precision)

    def __call__(
        self,
        latent: NDArray[np.float32],
        pixels: NDArray[np.uint8],
        precision: Precision | None = None,
    ) -> bool:
        """Decode, and take the time."""
        with self._backend.watch(GRAPHS["vae_decoder"]):
            return self._decoder(latent, pixels, precision)

    def close(self) -> None:
        """Close the decoder."""
        self._decoder.close()


class TimedEngine:
    """An engine, and a lap of the watch for each run."""

    def __init__(self, engine: Engine, measure: str, backend: TimedBackend) -> None:
        """Count the runs of `engine` for `measure`."""
        self._engine, self._measure, self._backend = engine, measure, backend

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Those of the engine."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Those of the engine."""
        return self._engine.outputs

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Bind the engine."""
        self._engine.bind(buffers, only)

    def enqueue(self, stream: int | None = None) -> None:
        """Run the engine, and take the time."""
        with self._backend.watch(self._measure):
            self._engine.enqueue(stream)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

"""A model by its engines alone: tokens in, pixels out, without a tokenizer or an image library.

Where a GPU is, there may be NumPy and nothing else of what draws pictures: tokens are drawn from a
seed, and pixels stay an array. All that costs time is as in `runtime.pipeline`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion_rt.bench.gpu_bench import Array
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.protocol import FLOAT, Backend, Engine, Entries, Evaluations
from diffusion_rt.runtime.decode import unscale
from diffusion_rt.runtime.samplers import make_plan

ROWS = 2  # with guidance
GUIDANCE = 5.0
DTYPES = {**FLOAT, "int64": np.int64}


@dataclass(slots=True)
class Drawing:
    """What came of a picture, and the seconds of it."""

    latents: Array  # [1, c, h, w] float32
    pixels: Array  # [1, height, width, 3] uint8
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)  # each from one evaluation's end to the next


class Drawer:
    """A backend whose engines stay open, and what one picture of it takes."""

    def __init__(self, folder: ModelFolder, backend: Backend) -> None:
        denoiser, decoder = backend.denoiser(), backend.decoder()
        assert denoiser is not None, "a backend with a loop on its device"
        assert decoder is not None, "a backend that makes pixels there"
        self.folder, self._backend = folder, backend
        self._denoiser, self._decoder = denoiser, decoder
        self._engines: dict[str, Engine] = {}

    def draw(self, width: int, height: int, steps: int, seed: int) -> Drawing:
        """One picture with guidance, by Euler."""
        begun = time.perf_counter()
        conditioning = self.text(width, height, seed)
        text = time.perf_counter()
        latents, ends = self.denoise(conditioning, width, height, steps, seed)
        denoised = time.perf_counter()
        pixels = self.decode(latents)
        end = time.perf_counter()
        seconds = {
            "text": text - begun,
            "denoise": denoised - text,
            "decode": end - denoised,
            "picture": end - begun,
        }
        return Drawing(latents, pixels, seconds, list(np.diff(ends)))

    def text(self, width: int, height: int, seed: int) -> dict[str, Array]:
        """The conditioning of two prompts of random tokens, unconditional first."""
        draw = np.random.default_rng(seed)
        contexts, pooled = [], None
        for encoder in self.folder.manifest.text_encoders:
            ids = draw.integers(0, encoder.bos_token_id, (ROWS, encoder.max_length), np.int64)
            ids[:, 0], ids[:, -1] = encoder.bos_token_id, encoder.eos_token_id
            sizes = {"batch": ROWS, "tokens": encoder.max_length}
            layer = encoder.layers - 1
            only = {"hidden_states": [layer]}
            found = run(self.engine(encoder.graph), {"input_ids": ids}, sizes, only)
            contexts.append(found["hidden_states"][layer].astype(np.float32))
            pooled = found["text_embeds"].astype(np.float32) if encoder.pooled else pooled
        assert pooled is not None
        return {
            "context": np.concatenate(contexts, -1),
            "text_embeds": pooled,
            "time_ids": np.array([[height, width, 0, 0, height, width]] * ROWS, np.float32),
        }

    def denoise(
        self, conditioning: Mapping[str, Array], width: int, height: int, steps: int, seed: int
    ) -> tuple[Array, list[float]]:
        """Latents [1, c, h, w], and the moment each evaluation was known to be done."""
        manifest = self.folder.manifest
        plan = make_plan(manifest.schedule, sampler="euler", steps=steps)
        factor = manifest.vae.factor
        shape = (1, manifest.vae.channels, height // factor, width // factor)
        noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
        ends: list[float] = []

        def report(done: int, total: int) -> None:
            if done:
                ends.append(time.perf_counter())

        latents = self._denoiser(
            conditioning=conditioning,
            evaluations=Evaluations(
                timesteps=plan.timesteps,
                c_in=plan.coefficients[:, 0],
                weights=plan.weights,
                draws=plan.draws,
            ),
            guidance_scale=GUIDANCE,
            guidance_rescale=0.0,
            start=plan.first(noise)[0],
            noise=np.zeros((0, *shape), np.float32),
            report=report,
        )
        return latents, ends

    def decode(self, latents: Array) -> Array:
        """The pixels of latents; zeros where they are not finite."""
        vae = self.folder.manifest.vae
        images, _, height, width = latents.shape
        pixels = np.empty((images, height * vae.factor, width * vae.factor, 3), np.uint8)
        finite = self._decoder(unscale(latents, vae), pixels)
        return pixels if finite else np.zeros_like(pixels)

    def engine(self, graph: str) -> Engine:
        """An engine of the backend, opened when it is first wanted."""
        if graph not in self._engines:
            self._engines[graph] = self._backend.load(graph)
        return self._engines[graph]

    def close(self) -> None:
        """Close every engine."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._denoiser.close()
        self._decoder.close()


def run(
    engine: Engine,
    given: Mapping[str, Array],
    sizes: Mapping[str, int],
    only: Entries | None = None,
) -> dict[str, Array]:
    """One run of a graph for the host's arrays; what is read of outputs is poisoned before."""
    inputs = {
        name: np.ascontiguousarray(given[name], DTYPES[spec.dtype])
        for name, spec in engine.inputs.items()
    }
    outputs: dict[str, Array] = {}
    for name, spec in engine.outputs.items():
        outputs[name] = np.zeros(spec.resolve(sizes), DTYPES[spec.dtype])
        entries = (only or {}).get(name)
        outputs[name][... if entries is None else list(entries)] = np.nan
    engine.bind({**inputs, **outputs}, only)
    engine.enqueue()
    return outputs


def decoded(load: Callable[[str], Engine], side: int, factor: int, seed: int = 0) -> Array:
    """What the VAE's decoder makes of random latents of `side` by `side`, the same for everybody.

    `factor` is how many pixels a latent becomes in each direction. The image [1, c, height, width]
    float32.
    """
    engine = load("vae_decoder")
    sizes = {"batch": 1, "height": side, "width": side}
    shape = engine.inputs["latent"].resolve(sizes)
    latent = np.random.default_rng(seed).standard_normal(shape, np.float32)
    sizes |= dict.fromkeys(("image_height", "image_width"), factor * side)
    found = run(engine, {"latent": latent}, sizes)["image"]
    engine.close()
    return found.astype(np.float32)


def evaluate(load: Callable[[str], Engine], side: int, seed: int = 0) -> Array:
    """One evaluation of the UNet by its three graphs, latents of `side` by `side`, two rows.

    The inputs are random and the same for every backend. The prediction [2, c, side, side] float32.
    """
    draw = np.random.default_rng(seed)
    prompt, timestep, step = (load(f"unet_{part}") for part in ("prompt", "timestep", "step"))
    tokens = 77
    sizes = {"batch": ROWS, "n": ROWS, "tokens": tokens, "height": side, "width": side}

    def random(engine: Engine, name: str) -> Array:
        shape = engine.inputs[name].resolve(sizes)
        values: Array = draw.standard_normal(shape, np.float32)
        return values

    given: dict[str, Array] = {name: random(prompt, name) for name in ("context", "text_embeds")}
    given["time_ids"] = np.full((ROWS, 6), 8.0 * side, np.float32)
    made: dict[str, Any] = run(prompt, given, sizes)
    added = made.pop("added")
    times = {"timestep": np.full(ROWS, 601, np.float32), "added": added}
    made |= run(timestep, times, sizes)
    found = run(step, {"latent": random(step, "latent"), **made}, sizes)["prediction"]
    for engine in (prompt, timestep, step):
        engine.close()
    return found.astype(np.float32)

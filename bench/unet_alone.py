"""The UNet alone as a contender, for models of which a whole pipeline fills the memory.

Both sides get the same random latents, context, pooled text and sizes, and give one prediction.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench import gpu_shapes
from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Outcome, Watch, own_peak_rss
from diffusion_rt.bench.gpu_chip import own_peak_device
from diffusion_rt.bench.ort_graphs import GraphBackend
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.choose import open_backend
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.export.checkpoint import MAX_JSON
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.unet import Unet

TIMESTEP = 601.0
TOKENS = 77


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one evaluation reads."""

    latents: NDArray[np.float32]  # [images, 4, h, w]
    conditioning: Conditioning  # of one row, or of two with guidance

    @classmethod
    def of(cls, case: Case, *, context: int, pooled: int) -> "Inputs":
        """Drawn from the seed of the case, for a UNet with these widths."""
        draw = np.random.default_rng(case.seed)
        rows = 2 if case.guidance_scale > 1 else 1
        shape = (case.images, 4, case.height // 8, case.width // 8)
        size = (case.height, case.width)
        return cls(
            draw.standard_normal(shape, np.float32),
            Conditioning(
                context=draw.standard_normal((rows, TOKENS, context), np.float32),
                text_embeds=draw.standard_normal((rows, pooled), np.float32),
                time_ids=np.array([[*size, 0, 0, *size]] * rows, np.float32),
            ),
        )


class OurUnet:
    """The UNet in its three parts; one step is timed, what is constant is computed before."""

    name = "diffusion-rt"

    def __init__(
        self, *, model: Path, threads: int, engine: str = "ort", clock: Clock = time.perf_counter
    ) -> None:
        """Open the three graphs."""
        backend = self._open(open_model(model), engine, threads)
        self._engines = [backend.load(f"unet_{part}") for part in ("prompt", "timestep", "step")]
        self._unet = Unet(*self._engines)
        self._clock = clock
        self._prepared: tuple[Case, Inputs] | None = None

    def run(self, case: Case) -> Outcome:
        """Evaluate the UNet once."""
        if self._prepared is None or self._prepared[0] != case:
            widths = {spec: self._engines[0].inputs[spec].shape[-1] for spec in _WIDTHS}
            context, pooled = (int(widths[name]) for name in _WIDTHS)
            inputs = Inputs.of(case, context=context, pooled=pooled)
            shape = inputs.latents.shape
            timesteps = np.array([TIMESTEP], np.float32)
            self._unet.prepare(
                inputs.conditioning, timesteps, shape[0], (shape[1], shape[2], shape[3])
            )
            self._prepared = case, inputs
        watch = Watch(self._clock)
        with watch("evaluation"):
            prediction = self._unet.predict(0, self._prepared[1].latents, 1.0)
        return Outcome({"predictions": prediction.copy()}, watch.result())

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """What this process holds on the GPU, in bytes."""
        return own_peak_device()

    def close(self) -> None:
        """Close the graphs."""
        for engine in self._engines:
            engine.close()

    def _open(self, folder: ModelFolder, engine: str, threads: int) -> Backend:
        return open_backend(folder, engine, threads=threads)


class OrtUnet(OurUnet):
    """The same graphs on ONNX Runtime by itself, as `ort_graphs` has it."""

    name = "ort"

    def _open(self, folder: ModelFolder, engine: str, threads: int) -> Backend:
        return GraphBackend(folder, threads, "cpu")


class DiffusersUnet:
    """`UNet2DConditionModel` in float32, eager."""

    name = "diffusers"

    def __init__(self, *, model: Path, threads: int, clock: Clock = time.perf_counter) -> None:
        """Load the network."""
        import torch
        from diffusers import UNet2DConditionModel

        torch.set_num_threads(threads)
        self._unet: Any = UNet2DConditionModel.from_pretrained(
            model / "unet", torch_dtype=torch.float32, local_files_only=True
        )
        self._config = self._unet.config
        self._clock = clock
        self._prepare()

    def run(self, case: Case) -> Outcome:
        """Evaluate the UNet once."""
        import torch

        config = self._config
        times = 6 * config.addition_time_embed_dim
        inputs = Inputs.of(
            case,
            context=config.cross_attention_dim,
            pooled=config.projection_class_embeddings_input_dim - times,
        )
        given = inputs.conditioning
        rows = len(given.context)
        latents = torch.from_numpy(np.tile(inputs.latents, (rows, 1, 1, 1)))
        context, pooled, sizes = (
            torch.from_numpy(np.repeat(values, case.images, axis=0))
            for values in (given.context, given.text_embeds, given.time_ids)
        )
        added = {"text_embeds": pooled, "time_ids": sizes}
        watch = Watch(self._clock)
        with torch.no_grad(), watch("evaluation"):
            prediction = self._unet(
                latents, TIMESTEP, encoder_hidden_states=context, added_cond_kwargs=added
            ).sample
        return Outcome({"predictions": prediction.numpy()}, watch.result())

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """What this process holds on the GPU, in bytes."""
        return own_peak_device()

    def close(self) -> None:
        """Let go of the network."""
        self._unet = None

    def _prepare(self) -> None:
        """What is done to the network once, before it is timed."""


class CompiledUnet(DiffusersUnet):
    """The same under torch.compile, as `peers.Compiled` has it."""

    name = "compile"

    def _prepare(self) -> None:
        from diffusion_rt.bench.peers import compiled

        self._unet = compiled(self._unet)


def network_of(model: Path) -> gpu_shapes.Network | None:
    """The UNet of a checkpoint as far as its work goes; None where nobody knows it."""
    path = model / "unet" / "config.json"
    try:
        return gpu_shapes.Network.of(strict_json.parse(read_bytes(path, MAX_JSON), str(path)))
    except (BadInput, KeyError, TypeError, ValueError):
        return None


def work_of(model: Path, case: Case) -> tuple[int | None, int | None]:
    """Operations and bytes of one evaluation at least, in float32; None where nobody knows them.

    From the UNet's own config: products, convolutions, attention and normalisations, each reading
    its inputs and weights once. What a step never computes anew is not counted.
    """
    network = network_of(model)
    if network is None:
        return None, None
    rows = case.images * (2 if case.guidance_scale > 1 else 1)
    shapes = gpu_shapes.step(case.width, case.height, rows, network)
    return gpu_shapes.flop(shapes), gpu_shapes.nbytes(shapes, 4)


_WIDTHS = ("context", "text_embeds")

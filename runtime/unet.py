"""The three parts of the UNet, put together for one request: what is constant runs once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.protocol import FLOAT, Engine
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.runtime.conditioning import Conditioning

Array = NDArray[np.float32]


class Unet:
    """Predictions of the UNet at the evaluations of one plan, for a fixed batch and size.

    Keys and values of every cross attention, and what every resnet adds for its timestep, are
    computed here, before the first step; a step then copies one row of them and runs.
    """

    def __init__(self, prompt: Engine, timestep: Engine, step: Engine) -> None:
        self._prompt, self._timestep, self._step = prompt, timestep, step
        self._buffers: dict[str, NDArray[Any]] = {}
        self._projections: dict[str, NDArray[Any]] = {}

    def prepare(
        self,
        conditioning: Conditioning,
        timesteps: NDArray[np.float32],
        images: int,
        latent_shape: tuple[int, int, int],
    ) -> None:
        """Fix conditioning, timesteps [n], number of images and latent shape (c, height, width).

        The batch of the UNet is `rows * images`, all unconditional before all conditional, where
        `rows` is 2 with guidance and 1 without.
        """
        constant = self._run_prompt(conditioning)
        self._projections = self._run_timestep(timesteps, constant.pop("added"))
        batch = len(conditioning.context) * images
        latent = self._step.inputs["latent"]
        prediction = self._step.outputs["prediction"]
        shape = (batch, *latent_shape)
        self._buffers = {name: np.repeat(value, images, axis=0) for name, value in constant.items()}
        for name, table in self._projections.items():
            self._buffers[name] = np.repeat(table[0], images, axis=0)
        self._buffers["latent"] = np.zeros(shape, FLOAT[latent.dtype])
        self._buffers["prediction"] = np.zeros(shape, FLOAT[prediction.dtype])
        self._step.bind(self._buffers)

    def predict(self, evaluation: int, latent: Array, scale: float) -> NDArray[Any]:
        """The prediction [rows * images, …] at one evaluation for `latent * scale` [images, …].

        The array is the engine's own output buffer: the next call overwrites it.
        """
        images = len(latent)
        entry = self._buffers["latent"]
        np.multiply(latent, np.float32(scale), out=entry[:images], casting="same_kind")
        if len(entry) > images:
            entry[images:] = entry[:images]
        for name, table in self._projections.items():
            rows = table[evaluation]
            self._buffers[name].reshape(len(rows), images, -1)[...] = rows[:, None]
        self._step.enqueue()
        return self._buffers["prediction"]

    def _run_prompt(self, conditioning: Conditioning) -> dict[str, NDArray[Any]]:
        rows, tokens, _ = conditioning.context.shape
        feeds = {
            "context": conditioning.context,
            "text_embeds": conditioning.text_embeds,
            "time_ids": conditioning.time_ids,
        }
        return run_once(self._prompt, feeds, {"batch": rows, "tokens": tokens})

    def _run_timestep(
        self, timesteps: NDArray[np.float32], added: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """One table [n, rows, channels] for each resnet."""
        count, rows = len(timesteps), len(added)
        feeds = {"timestep": np.repeat(timesteps, rows), "added": np.tile(added, (count, 1))}
        outputs = run_once(self._timestep, feeds, {"n": count * rows, "batch": count * rows})
        return {name: table.reshape(count, rows, -1) for name, table in outputs.items()}


def run_once(
    engine: Engine, feeds: dict[str, NDArray[Any]], sizes: dict[str, int]
) -> dict[str, NDArray[Any]]:
    """Run an engine on fresh buffers; `sizes` gives every symbol of its outputs' shapes."""
    buffers = {
        name: np.ascontiguousarray(value, FLOAT.get(engine.inputs[name].dtype))
        for name, value in feeds.items()
    }
    outputs = {spec.name: empty(spec, sizes) for spec in _specs(engine)}
    engine.bind(buffers | outputs)
    engine.enqueue()
    return outputs


def empty(spec: TensorSpec, sizes: dict[str, int]) -> NDArray[Any]:
    """A buffer for one output."""
    return np.zeros(spec.resolve(sizes), spec.dtype)


def _specs(engine: Engine) -> Sequence[TensorSpec]:
    return list(engine.outputs.values())

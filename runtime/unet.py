"""The three parts of the UNet, put together for one request: what is constant runs once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.protocol import FLOAT, Engine
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.signature import check_names, output_buffers

Array = NDArray[np.float32]

PROMPT = frozenset({"context", "text_embeds", "time_ids"})


class Unet:
    """Predictions of the UNet at the evaluations of one plan, for a fixed batch and size.

    Keys and values of every cross attention, and what every resnet adds for its timestep, are
    computed here, before the first step; a step then copies one row of them and runs.
    """

    def __init__(self, prompt: Engine, timestep: Engine, step: Engine) -> None:
        """Raises BadInput where the three do not fit together."""
        constant = (prompt.outputs.keys() | timestep.outputs.keys()) - {"added"}
        for name, engine, inputs, outputs in (
            ("unet_prompt", prompt, PROMPT, prompt.outputs.keys() | {"added"}),
            ("unet_timestep", timestep, {"timestep", "added"}, timestep.outputs.keys()),
            ("unet_step", step, constant | {"latent"}, {"prediction"}),
        ):
            check_names(name, engine, inputs=inputs, outputs=outputs)
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
        return run_once("unet_prompt", self._prompt, feeds, {"batch": rows, "tokens": tokens})

    def _run_timestep(
        self, timesteps: NDArray[np.float32], added: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """One table [n, rows, channels] for each resnet."""
        count, rows = len(timesteps), len(added)
        feeds = {"timestep": np.repeat(timesteps, rows), "added": np.tile(added, (count, 1))}
        sizes = {"n": count * rows, "batch": count * rows}
        outputs = run_once("unet_timestep", self._timestep, feeds, sizes)
        return {name: table.reshape(count, rows, -1) for name, table in outputs.items()}


def run_once(
    graph: str, engine: Engine, feeds: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Run an engine on fresh buffers; `sizes` gives every symbol of its outputs' shapes."""
    buffers = {
        name: np.ascontiguousarray(value, FLOAT.get(engine.inputs[name].dtype))
        for name, value in feeds.items()
    }
    outputs = output_buffers(graph, engine, sizes)
    engine.bind(buffers | outputs)
    engine.enqueue()
    return outputs

"""What an engine of a GPU is: it reads and writes device memory, on a stream it is given.

TensorRT and the native engine each provide `DeviceGraphs`; all above it they share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from diffusion_rt.engines.spec import Dtype, Precision, TensorSpec
from diffusion_rt.kernels.driver.interface import Stream

AHEAD = 4
"""Evaluations the host may be ahead of the device: its own delays do not show, and cancelling
takes no longer than these."""

AT_ONCE = 64
"""Evaluations that the loop has `unet_timestep` compute in one run, each with all rows of the UNet.

Tables have a multiple of as many rows, so that the arrays of each run begin where engines want
them: at a multiple of 256 bytes."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in device memory, contiguous, at an address that does not change."""

    address: int
    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class DeviceEngine(Protocol):
    """One graph that runs on a device, bound to one set of arrays at a time.

    Engines of one `DeviceGraphs` share weights and scratch memory, so their work goes to one
    stream, or one waits for the other.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph reads, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph writes, by name."""
        ...

    @property
    def generation(self) -> int:
        """Another number once memory that `enqueue` uses has moved: what was captured is stale."""
        ...

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """Fix the arrays that `enqueue` reads and writes, one for every input and output.

        Called once per bucket; a later call replaces the earlier one. May allocate and wait. Raises
        BadInput where a name, dtype or shape does not fit the signature or what was built, and
        OutOfMemory.
        """
        ...

    def enqueue(self, stream: Stream) -> None:
        """Put one run on the stream. Neither allocates nor waits, so that a graph can capture it.

        The first one after `bind` is not captured.
        """
        ...

    def close(self) -> None:
        """Give back what is this engine's own; a second call does nothing."""
        ...


class DeviceGraphs(Protocol):
    """The graphs of a model folder on one device."""

    @property
    def name(self) -> str:
        """What `--engine` calls it, such as `trt`."""
        ...

    def open(self, graph: str, precision: Precision | None = None) -> DeviceEngine:
        """An engine of one graph (a name of `spec.GRAPHS`), free to be bound to arrays of its own.

        Opened again for another bucket it shares the weights. `precision` as in `Backend.load`.
        """
        ...

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Raise BadInput where a graph is not built for these sizes; as `Backend.check`."""
        ...

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        """How many of `images` latents [c, h, w] are denoised together, 1 or more.

        `rows` of the UNet for each image, `tokens` of context. Raises BadInput where the size is
        none that this engine takes: it names what does not, or the nearest size and the command
        that builds this one.
        """
        ...

    def close(self) -> None:
        """Give back everything; engines that are still open are closed."""
        ...

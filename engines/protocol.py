"""What a backend is: it loads the graphs of a model folder as engines, and nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.spec import Precision, TensorSpec

Buffers = Mapping[str, NDArray[Any]]
Entries = Mapping[str, Sequence[int]]  # of an output's first dimension
FLOAT = {"float32": np.float32, "float16": np.float16}


class Engine(Protocol):
    """One graph that runs. Not safe for use by two threads at once."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph reads, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph writes, by name."""
        ...

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Fix the arrays that `enqueue` reads and writes, one for every input and output.

        Called once per bucket; a later call replaces the earlier one. Arrays are C-contiguous and
        stay where they are until the next `bind` or `close`. Of an output that `only` names just
        those entries will be read: others may stay unwritten. Raises BadInput where a name, dtype
        or shape does not fit the signature.
        """
        ...

    def enqueue(self, stream: int | None = None) -> None:
        """Run once on the bound buffers. Neither allocates buffers nor waits for a device.

        `stream` is a device stream's address; a host engine takes None and returns when done.
        """
        ...

    def close(self) -> None:
        """Give back all memory; a second call does nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluations:
    """A plan of steps as arrays, one row for each evaluation of the UNet.

    After an evaluation `S' = weights @ [S ; guided ; noise]`; `c_in * S[0]` is what the UNet sees.
    """

    timesteps: NDArray[np.float32]  # [n]
    c_in: NDArray[np.float32]  # [n]
    weights: NDArray[np.float64]  # [n, K, K + 2], the denoised latent written out
    draws: NDArray[np.bool_]  # [n]: where fresh noise is used


class Denoiser(Protocol):
    """The whole denoising loop on a device. One request at a time."""

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        """How many of `images` latents [c, h, w] it takes together, 1 or more.

        `rows` is 2 with guidance, else 1; `tokens` those of the context. Raises BadInput where the
        size is none that it takes: it names what does not, or the nearest size and the command
        that builds this one.
        """
        ...

    def __call__(
        self,
        *,
        conditioning: Buffers,
        evaluations: Evaluations,
        guidance_scale: float,
        guidance_rescale: float,
        start: NDArray[np.float32],
        noise: Iterable[NDArray[np.float32]],
        report: Callable[[int, int], None],
    ) -> NDArray[np.float32]:
        """Latents [images, c, h, w] float32 after the last evaluation.

        `conditioning` has `context` [rows, tokens, d], `text_embeds` [rows, p] and `time_ids`
        [rows, 6], unconditional first; `start` [images, c, h, w] is S[0] before the first
        evaluation (the rest of S is zeros), `noise` the fresh noise of each evaluation that draws
        some, [images, c, h, w], asked for as evaluations are enqueued. `report(done, total)` hears
        of finished evaluations; what it raises ends the loop within four more. Raises BadInput,
        OutOfMemory, and Fault where the latents stop being finite.
        """
        ...

    def close(self) -> None:
        """Give back all memory; it is taken again when next called."""
        ...


class PixelDecoder(Protocol):
    """The VAE decoder on a device, which makes bytes there. One request at a time."""

    def prepare(
        self, latent: tuple[int, ...], pixels: tuple[int, ...], precision: Precision | None = None
    ) -> None:
        """Make ready for latents and pixels of these shapes; raises as a call with them does."""
        ...

    def __call__(
        self,
        latent: NDArray[np.float32],
        pixels: NDArray[np.uint8],
        precision: Precision | None = None,
    ) -> bool:
        """Write the pixels [n, h, w, 3] of latents [n, c, h / factor, w / factor].

        They are latents as the VAE knows them. False where a number of the picture was not finite.
        `precision` as in `Backend.load`. Raises BadInput where the size is none that was built, and
        OutOfMemory.
        """
        ...

    def close(self) -> None:
        """Give back all memory; it is taken again when next called."""
        ...


class Backend(Protocol):
    """A way to run graphs: ONNX Runtime, TensorRT, the native engine, or nothing at all."""

    @property
    def name(self) -> str:
        """What `--engine` calls it, with the device it runs on, such as `ort (cpu)`."""
        ...

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """Open one graph of the model folder (a name of `spec.GRAPHS`).

        `precision` is that of the arithmetic; None takes the backend's own. The VAE asks for
        float32 where float16 would overflow.
        """
        ...

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Raise BadInput where a graph is not built for these sizes; nothing is opened.

        `sizes` are those of symbols of its inputs; any may be left out. The error names the nearest
        size and the command that builds this one. A backend that takes every size says nothing.
        """
        ...

    def denoiser(self) -> Denoiser | None:
        """The denoising loop on this backend's device; None where the host runs the loop."""
        ...

    def decoder(self) -> PixelDecoder | None:
        """The VAE decoder that ends in pixels; None where the host makes them of its image."""
        ...

    def close(self) -> None:
        """Give the device back, once; engines and denoiser are not used again."""
        ...

"""What a backend is: it loads the graphs of a model folder as engines, and nothing else."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.spec import Precision, TensorSpec

Buffers = Mapping[str, NDArray[Any]]
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

    def bind(self, buffers: Buffers) -> None:
        """Fix the arrays that `enqueue` reads and writes, one for every input and output.

        Called once per bucket; a later call replaces the earlier one. Arrays are C-contiguous and
        stay where they are until the next `bind` or `close`. Raises BadInput where a name, dtype or
        shape does not fit the signature.
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

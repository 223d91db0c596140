"""An engine with true shapes and no arithmetic, for tests of everything around engines."""

from collections.abc import Mapping

import numpy as np

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.protocol import Buffers, Engine, Entries
from diffusion_rt.engines.spec import Precision, TensorSpec


class NullEngine:
    """Writes the same small finite numbers into every row of every output: -0.5 to 0.5."""

    def __init__(
        self, graph: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """An engine of this signature."""
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}
        self._graph = graph
        self._buffers: Buffers | None = None
        self._closed = False

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Check and keep the arrays, as every engine does."""
        if self._closed:
            raise BadInput(f"{self._graph}: the engine is closed; load it again")
        check_buffers(self._graph, self.inputs, self.outputs, buffers, only)
        self._buffers = dict(buffers)

    def enqueue(self, stream: int | None = None) -> None:
        """Fill the outputs."""
        if stream is not None:
            raise BadInput(f"{self._graph}: a host engine has no streams; pass None")
        if self._buffers is None:
            raise BadInput(f"{self._graph}: no arrays are bound; call bind first")
        for name in self.outputs:
            array = self._buffers[name]
            width = array.shape[-1] if array.ndim else 1
            array[...] = (np.arange(width) % 17 / 16 - 0.5).astype(array.dtype)

    def close(self) -> None:
        """Let go of the arrays."""
        self._buffers = None
        self._closed = True


class NullBackend:
    """Any graph of a model folder, without its file."""

    def __init__(self, folder: ModelFolder, *, precision: Precision = "float32") -> None:
        """The graphs of `folder`, in `precision` unless `load` says otherwise."""
        self._folder = folder
        self._precision = precision

    @property
    def name(self) -> str:
        """What `--engine` calls it."""
        return "null"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """An engine with the signature that the manifest gives."""
        variant = self._folder.variant(graph, precision or self._precision)
        return NullEngine(graph, variant.inputs, variant.outputs)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Nothing: any size is taken."""

    def denoiser(self) -> None:
        """None: the host runs the loop."""

    def decoder(self) -> None:
        """None: the host makes the pixels."""

    def close(self) -> None:
        """Nothing is held but by engines."""

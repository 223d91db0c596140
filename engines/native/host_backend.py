"""The native engine on the host: every graph by its plan, slowly, on any machine."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.host import HostMemory, laid_out, read_source, run
from diffusion_rt.engines.native.lower import plan_of, precision_of
from diffusion_rt.engines.native.plan import Arithmetic, Plan, Weight
from diffusion_rt.engines.protocol import Buffers, Denoiser, Engine, Entries, PixelDecoder
from diffusion_rt.engines.spec import Precision, TensorSpec


class HostWeights:
    """Weights of a model folder in their layouts, read when they are first asked for."""

    def __init__(self, folder: ModelFolder) -> None:
        """Of `folder`; nothing is read yet."""
        self._folder = folder
        self._held: dict[Weight, NDArray[Any]] = {}

    def of(self, plan: Plan, weight: Weight) -> NDArray[Any]:
        """A weight of a plan. Raises BadInput where it is not finite."""
        if not weight.sources:
            return plan.constants[weight.name]
        if weight not in self._held:
            stored = [read_source(self._folder.path, source) for source in weight.sources]
            made = laid_out(weight, stored)
            if not np.isfinite(made).all():
                raise BadInput(
                    f"{weight.sources[0].location}: {weight.name} has numbers that are not finite "
                    f"in {weight.dtype}; download the checkpoint again, or run in float32"
                )
            self._held[weight] = made
        return self._held[weight]


class HostEngine:
    """One graph, planned anew for every size that is bound."""

    def __init__(
        self, folder: ModelFolder, graph: str, dtype: Arithmetic, weights: HostWeights
    ) -> None:
        """The graph of a model folder, with arithmetic in `dtype`."""
        variant: GraphVariant = folder.variant(graph, precision_of(dtype))
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in variant.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in variant.outputs}
        self._folder, self._graph, self._dtype = folder, graph, dtype
        self._weights: HostWeights | None = weights
        self._plans: dict[tuple[tuple[str, int], ...], Plan] = {}
        self._bound: tuple[Plan, HostMemory] | None = None

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Check the arrays, and plan for their sizes."""
        if self._weights is None:
            raise BadInput(f"{self._graph}: the engine is closed; load it again")
        check_buffers(self._graph, self.inputs, self.outputs, buffers, only)
        sizes = {
            symbol: size
            for name, spec in self.inputs.items()
            for symbol, size in zip(spec.shape, buffers[name].shape, strict=True)
            if isinstance(symbol, str)
        }
        key = tuple(sorted(sizes.items()))
        if key not in self._plans:
            self._plans[key] = plan_of(self._folder, self._graph, sizes, self._dtype)
        plan, weights = self._plans[key], self._weights
        for name in self.outputs:
            if buffers[name].shape != plan.buffers[name].shape:
                raise BadInput(
                    f"{self._graph}: {name}: got shape {list(buffers[name].shape)}, wants "
                    f"{list(plan.buffers[name].shape)}"
                )
        bound = dict(buffers)  # keeps them alive
        self._bound = plan, HostMemory(plan, lambda weight: weights.of(plan, weight), bound)

    def enqueue(self, stream: int | None = None) -> None:
        """Run once and return when the outputs are written."""
        if stream is not None:
            raise BadInput(f"{self._graph}: a host engine has no streams; pass None")
        if self._bound is None:
            raise BadInput(f"{self._graph}: no arrays are bound; call bind first")
        run(*self._bound)

    def close(self) -> None:
        """Let go of arrays and weights."""
        self._weights = self._bound = None


class HostBackend:
    """The graphs of a model folder by the NumPy references."""

    def __init__(self, folder: ModelFolder, *, precision: Precision = "float32") -> None:
        """Arithmetic in `precision` unless `load` says otherwise."""
        self._folder = folder
        self._precision: Precision = precision
        self._weights = HostWeights(folder)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return "native (host)"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """Open one graph; it is planned when arrays are bound."""
        return HostEngine(self._folder, graph, precision or self._precision, self._weights)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Nothing: any size is taken."""

    def denoiser(self) -> Denoiser | None:
        """None: the host runs the loop."""
        return None

    def decoder(self) -> PixelDecoder | None:
        """None: the host makes the pixels."""
        return None

    def close(self) -> None:
        """Nothing is held but by engines."""

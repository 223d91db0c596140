"""An engine whose arithmetic is a Python function, for tests of what runs engines."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import TensorSpec

Compute = Callable[[Buffers], Mapping[str, NDArray[Any]]]


class FakeEngine:
    """Checks its bindings as every engine does, then writes what `compute` returns."""

    def __init__(
        self, inputs: list[TensorSpec], outputs: list[TensorSpec], compute: Compute
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}
        self._compute = compute
        self._buffers: Buffers = {}
        self.binds = 0
        self.closed = False

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        check_buffers("fake", self.inputs, self.outputs, buffers, only)
        self._buffers = dict(buffers)
        self.binds += 1

    def enqueue(self, stream: int | None = None) -> None:
        inputs = {name: self._buffers[name] for name in self.inputs}
        for name, value in self._compute(inputs).items():
            self._buffers[name][...] = value

    def close(self) -> None:
        self.closed = True


def nan_like(array: NDArray[Any]) -> NDArray[Any]:
    """The array's shape, full of NaN."""
    return np.full_like(array, np.nan)

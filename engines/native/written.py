"""Tensors written over those of the checkpoint: kept on the host, so that they outlive a stream."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.lower import precision_of
from diffusion_rt.engines.native.packing import finite, held_as, to_bfloat16
from diffusion_rt.engines.native.plan import Arithmetic, Source
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.weights import Weights, check_values
from diffusion_rt.engines.onnx_file import MAX_BYTES, check_external, read_onnx
from diffusion_rt.engines.spec import Precision

Tensor = tuple[str, str]  # the folder in the checkpoint, the parameter's name in the graphs


class Written:
    """The tensors of a model that were written, and the way back.

    A tensor is written to all weights that are on the device, and to those that come there later.
    """

    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        """None yet; graphs run in `precision` unless one is opened in another."""
        self._folder, self._precision = folder, precision
        self._values: dict[Tensor, NDArray[Any]] = {}
        self._known: dict[Tensor, list[tuple[Arithmetic, Source]]] = {}

    def write(self, tensor: Tensor, values: NDArray[Any], there: Iterable[Weights]) -> None:
        """Replace a tensor in the weights on the device, which nothing uses meanwhile.

        Raises BadInput where no graph has it or the values do not fit; all stays as it was.
        """
        self._check(tensor, values)
        copy, begun = np.array(values, order="C"), []
        try:
            for weights in _having(tensor, there):
                begun.append(weights)
                weights.write(tensor[1], copy)
        except BaseException:
            for weights in begun:
                self._put_back(tensor, weights)
            raise
        self._values[tensor] = copy

    def restore(self, tensor: Tensor, there: Iterable[Weights]) -> None:
        """Bring a tensor's own values back. Raises BadInput where no graph has it."""
        self._stored(tensor)
        if tensor in self._values:
            for weights in _having(tensor, there):
                weights.restore(tensor[1], self._folder.path)
            del self._values[tensor]

    def apply(self, weights: Weights) -> None:
        """Write to weights that were streamed just now."""
        for tensor, values in self._values.items():
            for found in _having(tensor, [weights]):
                found.write(tensor[1], values)

    def _put_back(self, tensor: Tensor, weights: Weights) -> None:
        before = self._values.get(tensor)
        if before is None:
            weights.restore(tensor[1], self._folder.path)
        else:
            weights.write(tensor[1], before)

    def _check(self, tensor: Tensor, values: NDArray[Any]) -> None:
        """BadInput where a graph, on the device or not, cannot take the values."""
        for dtype, source in self._stored(tensor):
            check_values(source, values)
            with np.errstate(over="ignore"):
                bfloat16 = dtype == "bfloat16"
                made = to_bfloat16(values) if bfloat16 else values.astype(held_as(dtype))
            if not finite(made, dtype, np.zeros(1 << 18, np.uint8)):
                raise BadInput(
                    f"weight {shown(source.name)}: the values given have NaN, infinity or numbers "
                    f"too large for {dtype}; give others, or run in float32"
                )

    def _stored(self, tensor: Tensor) -> list[tuple[Arithmetic, Source]]:
        """The arithmetic of each graph that has a tensor, and where it is stored."""
        self._known = self._known or self._read()
        if tensor not in self._known:
            component, name = tensor
            there = [known for folder, known in self._known if folder == component]
            folders = sorted({folder for folder, _ in self._known})
            near = get_close_matches(name, there, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; wants one of {', '.join(folders)}"
            raise BadInput(f"{shown(component)}: no graph has a weight {shown(name)}{hint}")
        return self._known[tensor]

    def _read(self) -> dict[Tensor, list[tuple[Arithmetic, Source]]]:
        folder = self._folder
        found: dict[Tensor, list[tuple[Arithmetic, Source]]] = {}
        for graph in folder.manifest.graphs:
            dtype = arithmetic(folder, graph, None, self._precision)
            file = folder.variant(graph, precision_of(dtype)).file
            content = read_bytes(folder.path / file, MAX_BYTES, follow_links=False)
            onnx = read_onnx(content, str(folder.path / file))
            check_external(onnx, file, folder.manifest.files)
            for source in onnx.external:
                tensor = (_component(source), source.name)
                found.setdefault(tensor, []).append((dtype, source))
        return found


def _having(tensor: Tensor, there: Iterable[Weights]) -> Iterator[Weights]:
    """Of some weights those that a tensor is part of."""
    for weights in there:
        source = weights.arrangement.source(tensor[1])
        if source is not None and _component(source) == tensor[0]:
            yield weights


def _component(source: Source) -> str:
    """The folder of the checkpoint that a tensor lies in: text encoders share their names."""
    return str(PurePosixPath(source.location).parent)

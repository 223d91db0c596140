"""A plan run by the NumPy references of the kernels, over its own arena: the truth for a device.

Every operation computes in float64 and is rounded where the device rounds: when it writes.
"""

from collections.abc import Callable, Mapping
from functools import reduce, singledispatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.artefact import read_exactly, reading
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.engines.native.plan import (
    ITEM,
    Attention,
    Convolution,
    Copy,
    Elementwise,
    Embedding,
    Epilogue,
    GroupNorm,
    LayerNorm,
    Plan,
    Product,
    SelectRow,
    Source,
    TimestepEmbedding,
    View,
    Weight,
)
from diffusion_rt.kernels import attention, conv, epilogue, gemm, group_norm, layer_norm

Array = NDArray[Any]
Parameters = Callable[[Weight], Array]

GATES = 8  # of the layout geglu: 8 values, then their 8 gates
_HELD: Mapping[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
}


class HostMemory:
    """The arrays of one plan: its arena, poisoned, and what the caller binds."""

    def __init__(self, plan: Plan, weights: Parameters, bound: Mapping[str, Array]) -> None:
        """`bound` has a C-contiguous array for each input and output of the plan."""
        self._plan = plan
        self._weights = weights
        self._arena = np.empty(plan.arena_size, np.uint8)
        self._flat = {
            name: bound[name].reshape(-1) if buffer.place != "arena" else self._part(name)
            for name, buffer in plan.buffers.items()
        }
        self.poison()

    def _part(self, name: str) -> Array:
        buffer = self._plan.buffers[name]
        part = self._arena[buffer.offset : buffer.offset + buffer.size]
        return part.view(_HELD[buffer.dtype])

    def poison(self) -> None:
        """Fill the arena with what is NaN in every type."""
        self._arena.fill(0xFF)

    def read(self, view: View) -> Array:
        """The numbers of a view; bfloat16 as float32."""
        return widened(self._strided(view), view.dtype)

    def write(self, view: View, values: Array) -> None:
        """Round numbers into a view; zeros fill a last dimension that is longer."""
        place = self._strided(view)
        if values.shape != view.shape:
            place[..., values.shape[-1] :] = 0
            place = place[..., : values.shape[-1]]
        with np.errstate(over="ignore", invalid="ignore"):  # as a device: infinite, or NaN
            if view.dtype == "bfloat16":
                place[...] = to_bfloat16(np.asarray(values, np.float32))
            else:
                place[...] = values

    def weight(self, name: str) -> Array:
        """A weight as an operation reads it."""
        return self._weights(self._plan.weights[name])

    def optional(self, name: str | None) -> Array | None:
        """A weight, where there is one."""
        return None if name is None else self.weight(name)

    def _strided(self, view: View) -> Array:
        flat = self._flat[view.buffer]
        steps = zip(view.shape, view.strides, strict=True)
        last = view.offset + sum((size - 1) * stride for size, stride in steps)
        assert 0 <= view.offset <= last < flat.size, f"{view} leaves its buffer"
        strides = [stride * flat.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)


def run(plan: Plan, memory: HostMemory) -> None:
    """Run every operation of a plan, in order."""
    for operation in plan.operations:
        memory.write(operation.output, perform(operation, memory))


@singledispatch
def perform(operation: object, memory: HostMemory) -> Array:
    """What an operation writes, before it is rounded."""
    raise TypeError(type(operation).__name__)


def _epilogue(given: Epilogue, memory: HostMemory) -> dict[str, Any]:
    return {
        "bias": memory.optional(given.bias),
        "vector": None if given.vector is None else memory.read(given.vector),
        "activation": given.activation,
        "residual": None if given.residual is None else memory.read(given.residual),
    }


@perform.register
def _(operation: Product, memory: HostMemory) -> Array:
    left = np.concatenate([memory.read(source) for source in operation.sources], axis=1)
    weight = memory.weight(operation.weight).reshape(operation.columns, -1)
    return gemm.reference(left, weight, **_epilogue(operation.epilogue, memory))


@perform.register
def _(operation: Convolution, memory: HostMemory) -> Array:
    return conv.reference(
        np.concatenate([memory.read(source) for source in operation.sources], axis=3),
        memory.weight(operation.weight),
        stride=operation.stride,
        padding=operation.padding,
        enlarged=operation.upsampled,
        **_epilogue(operation.epilogue, memory),
    )


@perform.register
def _(operation: Attention, memory: HostMemory) -> Array:
    views = (operation.query, operation.key, operation.value)
    query, key, value = (memory.read(view) for view in views)
    return attention.reference(query, key, value, operation.scale, operation.causal)


@perform.register
def _(operation: GroupNorm, memory: HostMemory) -> Array:
    return group_norm.reference(
        np.concatenate([memory.read(source) for source in operation.sources], axis=2),
        memory.weight(operation.weight),
        memory.weight(operation.bias),
        operation.groups,
        operation.epsilon,
        operation.silu,
    )


@perform.register
def _(operation: LayerNorm, memory: HostMemory) -> Array:
    return layer_norm.reference(
        memory.read(operation.source),
        memory.weight(operation.weight),
        memory.weight(operation.bias),
        operation.epsilon,
    )


@perform.register
def _(operation: Copy, memory: HostMemory) -> Array:
    return memory.read(operation.source)


@perform.register
def _(operation: Elementwise, memory: HostMemory) -> Array:
    values: list[Array] = [memory.read(source).astype(np.float64) for source in operation.sources]
    numbers = [np.array(scalar) for scalar in operation.scalars]
    match operation.function:
        case "add":
            return reduce(np.add, [*values, *numbers])
        case "multiply":
            return reduce(np.multiply, [*values, *numbers])
        case "clip":
            low, high = operation.scalars
            return np.clip(values[0], low, high)
        case "sigmoid":
            return epilogue.sigmoid(values[0])
        case function:
            return epilogue.activate(values[0], function)


@perform.register
def _(operation: Embedding, memory: HostMemory) -> Array:
    ids, table = memory.read(operation.ids), memory.weight(operation.table)
    if ids.min() < 0 or ids.max() >= len(table):
        wrong = int(ids.max() if ids.min() >= 0 else ids.min())
        raise BadInput(f"{operation.name}: token {wrong}, the table has {len(table)}")
    positions = memory.weight(operation.positions)[: ids.shape[1]]
    return table[ids].astype(np.float64) + positions


@perform.register
def _(operation: TimestepEmbedding, memory: HostMemory) -> Array:
    # Products of angles are float32 on the device, as the graph has them.
    angles = memory.read(operation.source)[..., None] * memory.weight(operation.frequencies)
    waves = [np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))]
    return np.concatenate(waves[:: -1 if operation.cosine_first else 1], axis=-1)


@perform.register
def _(operation: SelectRow, memory: HostMemory) -> Array:
    ids = memory.read(operation.ids)
    places = (ids if operation.token is None else ids == operation.token).argmax(axis=1)
    chosen: Array = memory.read(operation.source)[np.arange(len(ids)), places]
    return chosen


def laid_out(weight: Weight, stored: list[Array]) -> Array:
    """A weight in its layout, from its sources' arrays; bfloat16 as float32.

    Raises BadInput where they do not make it up.
    """
    parts = [_laid_out(array, weight.layout) for array in stored]
    try:
        joined = np.concatenate(parts)
        fill = [(0, wanted - has) for wanted, has in zip(weight.shape, joined.shape, strict=True)]
        made = np.pad(joined, fill)
    except ValueError:
        shapes = ", ".join(str(list(array.shape)) for array in stored)
        raise BadInput(
            f"weight {weight.name}: {shapes} as {weight.layout} is not {list(weight.shape)}; "
            "export the model again"
        ) from None
    with np.errstate(over="ignore", invalid="ignore"):
        if weight.dtype == "bfloat16":
            return widened(to_bfloat16(made), "bfloat16")
        return made.astype(weight.dtype)


def _laid_out(stored: Array, layout: str) -> Array:
    if layout == "filters":
        return stored.transpose(0, 2, 3, 1)
    if layout == "doubled":
        return conv.doubled_filters(stored.transpose(0, 2, 3, 1))
    if layout == "transposed":
        return stored.T
    if layout == "geglu":
        halves = stored.reshape(2, -1, GATES, *stored.shape[1:])
        return halves.swapaxes(0, 1).reshape(stored.shape)
    return stored


def read_source(folder: Path, source: Source) -> Array:
    """A stored tensor; bfloat16 as float32."""
    path = folder / source.location
    with reading(path, follow_links=False) as file:
        file.seek(source.offset)
        content = read_exactly(file, source.length, path)
    stored = np.frombuffer(content, _HELD[source.dtype] if source.dtype in ITEM else source.dtype)
    return widened(stored.reshape(source.shape), source.dtype)

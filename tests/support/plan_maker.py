"""Plans written by hand, and what they run on: small ones of every operation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.native import plan as p

Array = NDArray[Any]


@dataclass
class PlanMaker:
    """Puts a plan together; every buffer in the arena has memory of its own."""

    dtype: p.Arithmetic = "float32"
    buffers: dict[str, p.Buffer] = field(default_factory=dict)
    weights: dict[str, p.Weight] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    operations: list[p.Operation] = field(default_factory=list)
    end: int = 0

    def buffer(
        self,
        name: str,
        shape: Sequence[int],
        place: p.Place = "arena",
        dtype: str | None = None,
    ) -> p.View:
        """A new buffer, seen whole."""
        made = p.Buffer(name, dtype or self.dtype, tuple(shape), place, 0)
        if place == "arena":
            made = p.Buffer(name, made.dtype, made.shape, place, self.end)
            self.end += -(-made.size // p.ALIGNMENT) * p.ALIGNMENT
        self.buffers[name] = made
        return contiguous(name, made.dtype, shape)

    def weight(
        self, name: str, values: Array, layout: p.Layout = "rows", dtype: str | None = None
    ) -> str:
        """A weight whose array lies in the plan."""
        shape = values.shape
        if layout == "filters":
            shape = (shape[0], *shape[2:], shape[1])
        self.weights[name] = p.Weight(name, (), layout, dtype or self.dtype, shape)
        self.constants[name] = values
        return name

    def plan(self, graph: str = "unet_step", sizes: Mapping[str, int] | None = None) -> p.Plan:
        """What was put together."""
        places: dict[str, list[str]] = {"input": [], "output": [], "arena": []}
        for buffer in self.buffers.values():
            places[buffer.place].append(buffer.name)
        return p.Plan(
            graph=graph,
            dtype=self.dtype,
            sizes=dict(sizes or {}),
            inputs=tuple(places["input"]),
            outputs=tuple(places["output"]),
            buffers=self.buffers,
            weights=self.weights,
            constants=self.constants,
            operations=tuple(self.operations),
            arena_size=self.end,
        )


def contiguous(buffer: str, dtype: str, shape: Sequence[int]) -> p.View:
    """A view of all of a buffer."""
    strides = tuple(prod(shape[place + 1 :]) for place in range(len(shape)))
    return p.View(buffer, dtype, tuple(shape), strides)


def reshaped(view: p.View, *shape: int) -> p.View:
    """Another shape of a contiguous view."""
    found = contiguous(view.buffer, view.dtype, shape)
    assert prod(shape) == prod(view.shape)
    return found


def heads(view: p.View, count: int) -> p.View:
    """[images, tokens, width] as [images, tokens, heads, head size]."""
    images, tokens, width = view.shape
    size = width // count
    return p.View(
        view.buffer,
        view.dtype,
        (images, tokens, count, size),
        (*view.strides[:2], size * view.strides[2], view.strides[2]),
        view.offset,
    )


def rounded(values: Array, dtype: str) -> NDArray[np.float64]:
    """Values as float64, after one rounding to a dtype."""
    from diffusion_rt.engines.native.packing import to_bfloat16, widened

    if dtype == "bfloat16":
        return widened(to_bfloat16(values), "bfloat16").astype(np.float64)
    return values.astype(dtype).astype(np.float64)

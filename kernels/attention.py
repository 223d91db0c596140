"""`attention`: each query's mean of the values, weighted by the softmax of its scores."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse

Dtype = Literal["float16", "bfloat16", "float32"]

MOST_TOKENS = 2**20  # of queries or keys: all that 1024 x 1024 latents have
MOST_BLOCKS = 65535  # of a grid along y and z: heads, and the batch
MOST_STRIDE = 2**31  # a kernel gets strides as int32, and multiplies them in 64 bits
_REFERENCE_SCORES = 2**24
COLUMNS = 8  # a head's size is a multiple of it
ALIGNMENT = 16  # bytes, of every row of a head

PARAMETERS = (
    Parameter("q", "pointer", ALIGNMENT),  # [batch, queries, heads, head_size] by its strides
    Parameter("k", "pointer", ALIGNMENT),  # [batch, keys, heads, head_size]
    Parameter("v", "pointer", ALIGNMENT),  # as k
    Parameter("out", "pointer", ALIGNMENT),  # as q
    Parameter("queries", "int32"),
    Parameter("keys", "int32"),
    Parameter("head_size", "int32"),
    Parameter("causal", "int32"),
    *(
        Parameter(f"{tensor}_{stride}", "int32")
        for tensor in ("q", "k", "v", "out")
        for stride in ("batch", "token", "head")
    ),
    Parameter("scale", "float32"),  # times log2(e)
)


@dataclass(frozen=True, slots=True)
class Strides:
    """How far the next batch, token and head lie, in elements."""

    batch: int
    token: int
    head: int


def sequence_major(tokens: int, heads: int, head_size: int, width: int | None = None) -> Strides:
    """Of [batch, tokens, width], where a head's columns begin at head * head_size.

    `width` is that of a wider row, such as packed q, k and v; the heads' own where None.
    """
    width = heads * head_size if width is None else width
    return Strides(tokens * width, width, head_size)


def head_major(tokens: int, heads: int, head_size: int) -> Strides:
    """Of [batch, heads, tokens, head_size]."""
    return Strides(heads * tokens * head_size, head_size, tokens * head_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention: its sizes, and where its numbers lie; raises Misuse where no kernel takes it.

    `causal`: a query sees the keys up to its own place, counted from the first of both.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_size: int
    q: Strides
    k: Strides
    v: Strides
    out: Strides
    dtype: Dtype = "float16"
    scale: float | None = None  # of the scores; 1/sqrt(head_size) where None
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            if not 1 <= getattr(self, name) <= MOST_TOKENS:
                raise Misuse(f"attention: {name}={getattr(self, name)}, 1 to {MOST_TOKENS} taken")
        for name in ("batch", "heads"):
            if not 1 <= getattr(self, name) <= MOST_BLOCKS:
                raise Misuse(f"attention: {name}={getattr(self, name)}, 1 to {MOST_BLOCKS} taken")
        if self.head_size < COLUMNS or self.head_size % COLUMNS:
            raise Misuse(f"attention: head_size={self.head_size} is no multiple of {COLUMNS}")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise Misuse(f"attention: scale={self.scale}; a finite number above 0 is wanted")
        step = ALIGNMENT // (4 if self.dtype == "float32" else 2)
        for name in ("q", "k", "v", "out"):
            strides: Strides = getattr(self, name)
            for way in ("batch", "token", "head"):
                stride = getattr(strides, way)
                if stride % step:
                    raise Misuse(
                        f"attention: {name}'s {way} stride {stride} is no multiple "
                        f"of {step} elements of {self.dtype}"
                    )
                if not 0 <= stride < MOST_STRIDE:
                    raise Misuse(
                        f"attention: {name}'s {way} stride {stride} is not within 0 to "
                        f"{MOST_STRIDE - 1} elements"
                    )

    def arguments(self, q: int, k: int, v: int, out: int) -> tuple[Value, ...]:
        """What every kernel of PARAMETERS is given, for tensors at these addresses."""
        scale = 1 / math.sqrt(self.head_size) if self.scale is None else self.scale
        strides = (self.q, self.k, self.v, self.out)
        return (
            *(q, k, v, out),
            *(self.queries, self.keys, self.head_size, int(self.causal)),
            *(number for each in strides for number in (each.batch, each.token, each.head)),
            scale * math.log2(math.e),
        )


def reference(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], scale: float, causal: bool = False
) -> NDArray[np.float64]:
    """Scaled dot-product attention (Vaswani et al., 2017) of [batch, tokens, heads, head_size].

    Scores are made for so many queries at a time that they stay under 128 MiB.
    """
    keys, values = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (k, v))
    result = np.empty(q.shape, np.float64)
    batch, count, heads, _ = q.shape
    step = max(1, _REFERENCE_SCORES // (batch * heads * k.shape[1]))
    for first in range(0, count, step):
        queries = q[:, first : first + step].astype(np.float64).transpose(0, 2, 1, 3)
        scores = queries @ keys.swapaxes(-1, -2) * scale
        if causal:
            places = np.arange(first, first + queries.shape[2])
            scores[..., np.arange(k.shape[1]) > places[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        result[:, first : first + step] = (weights @ values).transpose(0, 2, 1, 3)
    return result

"""What becomes of a sum of products before it is rounded and stored."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.errors import Misuse

Activation = Literal["none", "gelu", "quick_gelu", "silu", "geglu"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "gelu", "quick_gelu", "silu", "geglu")
"""Their place is the number that the kernels know them by; `gelu` is that of erf."""

GATED = 8  # rows of values, then as many rows of gates, in a weight for geglu


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """sum + bias[N] + vector[image, N], then the activation, then + residual; all in float32.

    `geglu` takes 8 values and their 8 gates, value · gelu(gate), and halves N; there is no vector
    then. The residual may lie where the output does.
    """

    bias: bool = False
    vector: bool = False
    activation: Activation = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise Misuse(f"activation {self.activation!r}; one of {', '.join(ACTIVATIONS)}")
        if self.activation == "geglu" and self.vector:
            raise Misuse("an epilogue with geglu adds no vector of each image")

    @property
    def number(self) -> int:
        """The activation as the kernels know it."""
        return ACTIVATIONS.index(self.activation)

    def columns(self, filters: int) -> int:
        """Columns of the output for N rows of the weight; raises Misuse where N does not fit."""
        if self.activation != "geglu":
            return filters
        if filters % (2 * GATED):
            raise Misuse(f"geglu of {filters} columns; a multiple of {2 * GATED} is wanted")
        return filters // 2


def reference(
    sums: NDArray[Any],
    *,
    bias: NDArray[Any] | None = None,
    vector: NDArray[Any] | None = None,
    activation: Activation = "none",
    residual: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The epilogue of sums [images, pixels, N], in float64.

    bias [N], vector [images, N], residual as the result, [images, pixels, N] (N / 2 with geglu).
    """
    x: NDArray[np.float64] = sums.astype(np.float64)
    if bias is not None:
        x = x + bias.astype(np.float64)
    if vector is not None:
        x = x + vector.astype(np.float64)[:, None]
    x = activate(x, activation)
    return x if residual is None else x + residual.astype(np.float64)


def activate(x: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """The activation of [..., N] in float64."""
    match activation:
        case "gelu":
            return x * normal_cdf(x)
        case "quick_gelu":
            return x * sigmoid(1.702 * x)
        case "silu":
            return x * sigmoid(x)
        case "geglu":
            pairs = x.reshape(*x.shape[:-1], -1, 2, GATED)
            gated = pairs[..., 0, :] * activate(pairs[..., 1, :], "gelu")
            return gated.reshape(*x.shape[:-1], -1)
        case _:
            return x


def normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Φ(x) = (1 + erf(x / √2)) / 2, to the last bits of float64, also where it is tiny."""
    result: NDArray[np.float64] = _normal_cdf(x)
    return result


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), where nothing overflows."""
    small = np.exp(-np.abs(x))
    result: NDArray[np.float64] = np.where(x < 0, small, 1.0) / (1 + small)
    return result


_normal_cdf = np.vectorize(lambda x: math.erfc(-x * math.sqrt(0.5)) / 2, otypes=[np.float64])


def interleaved(weight: NDArray[Any]) -> NDArray[Any]:
    """A weight (or bias) for geglu: [2N, ...] of all values, then all gates, to 8 by 8 in turn."""
    half = len(weight) // 2
    pairs = weight.reshape(2, half // GATED, GATED, *weight.shape[1:])
    result: NDArray[Any] = pairs.swapaxes(0, 1).reshape(weight.shape)
    return result

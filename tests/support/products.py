"""Arrays of the types that products take, and plain code of the same types to measure against."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels import epilogue as epilogues
from diffusion_rt.kernels.epilogue import Activation

Array = NDArray[Any]


def rounded(values: Array, dtype: str) -> Array:
    """Values that the type holds, as float32 (float32, float16) or the upper halves of them."""
    if dtype != "bfloat16":
        result: Array = values.astype(dtype).astype("f4")
        return result
    bits = values.astype("f4").view("u4")
    upper: Array = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("u4")
    return upper.view("f4")


def stored(values: Array, dtype: str) -> Array:
    """Values that the type holds, as it stores them; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    return (values.astype("f4").view("u4") >> 16).astype("u2")


def read(bits: Array, dtype: str) -> Array:
    """What an array of `stored` stands for, as float32."""
    if dtype != "bfloat16":
        result: Array = bits.astype("f4")
        return result
    return (bits.astype("u4") << 16).view("f4")


def storage(dtype: str) -> str:
    """NumPy's name of the type that `stored` gives."""
    return "u2" if dtype == "bfloat16" else dtype


def plain_sums(a: Array, weight: Array) -> Array:
    """a [M, K] by weight [N, K] in float32, one product after the other."""
    sums = np.zeros((len(a), len(weight)), "f4")
    for k in range(a.shape[1]):
        sums += a[:, k, None].astype("f4") * weight[:, k].astype("f4")
    return sums


def plain_epilogue(
    sums: Array,
    *,
    bias: Array | None,
    vector: Array | None,
    activation: Activation,
    residual: Array | None,
) -> Array:
    """The epilogue of [images, pixels, N] in float32, its activation rounded to float32."""
    x = sums.astype("f4")
    if bias is not None:
        x = x + bias.astype("f4")
    if vector is not None:
        x = x + vector.astype("f4")[:, None]
    x = epilogues.activate(x.astype("f8"), activation).astype("f4")
    return x if residual is None else x + residual.astype("f4")

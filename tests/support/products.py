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


def windows(x: Array, kernel: tuple[int, int], stride: int = 1) -> Array:
    """What each pixel of a convolution's output reads of x [images, h, w, C], unfolded."""
    found = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]
    images, height, width = found.shape[:3]
    return found.transpose(0, 1, 2, 4, 5, 3).reshape(images, height, width, -1)


def plain_doubled(x: Array, weight: Array) -> Array:
    """Sums [images, 2h, 2w, N] by filters [N, 16, C], a parity at a time, in float32."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    images, height, width, _ = x.shape
    sums = np.zeros((images, 2 * height, 2 * width, len(weight)), "f4")
    for parity in range(4):
        y, z = divmod(parity, 2)
        seen = windows(padded, (2, 2))[:, y : y + height, z : z + width]
        own = weight[:, 4 * parity : 4 * parity + 4].reshape(len(weight), -1)
        found = plain_sums(seen.reshape(-1, seen.shape[-1]), own)
        sums[:, y::2, z::2] = found.reshape(images, height, width, -1)
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

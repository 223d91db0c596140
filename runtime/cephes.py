"""Logarithm, sine and cosine in float32, by the methods of Moshier's Cephes library.

PyTorch's vector code on x86 CPUs computes normal noise with these, so the last bits of its draws
are theirs: the methods are repeated step by step, with the fused additions of sine and cosine.
"""

import math

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]

_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_2 = (np.float32(0.693359375), np.float32(-2.12194440e-4))  # in two parts
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_EIGHTH = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # -pi / 4, in three


def log(x: Single) -> Single:
    """The natural logarithm of normal positive numbers."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < np.float32(math.sqrt(0.5))
    x = np.where(low, mantissa + mantissa, mantissa) - np.float32(1)
    power = (exponent - low).astype(np.float32)
    y = np.full_like(x, _LOG[0])
    for coefficient in _LOG[1:]:
        y = y * x + np.float32(coefficient)
    square = x * x
    y = y * x * square + power * _LOG_2[1] - square * np.float32(0.5)
    total: Single = x + y + power * _LOG_2[0]
    return total


def sine_and_cosine(angle: Single) -> tuple[Single, Single]:
    """The sine and the cosine of angles of 0 to 2 pi."""
    eighths = (angle * np.float32(4 / math.pi)).astype(np.int32)
    eighths += eighths & 1
    x = angle
    for part in _EIGHTH:
        x = _fused(eighths, part, x)
    square = x * x
    sine, cosine = np.full_like(x, _SINE[0]), np.full_like(x, _COSINE[0])
    for coefficient in _SINE[1:]:
        sine = _fused(sine, square, coefficient)
    for coefficient in _COSINE[1:]:
        cosine = _fused(cosine, square, coefficient)
    sine = _fused(sine * square, x, x)
    cosine = _fused(cosine * square, square, square * np.float32(-0.5)) + np.float32(1)
    swapped = eighths & 2 != 0
    return (
        np.where(eighths & 4, np.float32(-1), np.float32(1)) * np.where(swapped, cosine, sine),
        np.where(eighths + 2 & 4, np.float32(-1), np.float32(1)) * np.where(swapped, sine, cosine),
    )


def _fused(a: NDArray[np.generic], b: Single | float, c: Single | float) -> Single:
    """a * b + c of float32 numbers, rounded once."""
    total = np.multiply(a, np.float32(b) if isinstance(b, float) else b, dtype=np.float64)
    total += np.float32(c) if isinstance(c, float) else c
    rounded: Single = total.astype(np.float32)
    return rounded

"""What the device reads at each evaluation, so that one capture serves any sampler and length.

The layouts are those of `sources/step_table.h`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ORDER = 5
COLUMNS = MAX_ORDER + 2  # the latents, the guided prediction, the noise
NO_NOISE = -1
ALL_FINITE = 2**31 - 1

CURSOR = np.dtype([("index", "<i4"), ("count", "<i4"), ("arrived", "<u4"), ("bad", "<i4")])
STEP = np.dtype(
    [
        ("c_in", "<f4"),
        ("guidance", "<f4"),
        ("rescale", "<f4"),
        ("noise", "<i4"),
        ("order", "<i4"),
        ("reserved", "<i4", 3),
        ("weights", "<f8", (MAX_ORDER, COLUMNS)),
        ("padding", "<i4", 2),
    ]
)
assert CURSOR.itemsize == 16
assert STEP.itemsize == 320


def cursor(count: int) -> NDArray[Any]:
    """The evaluation counter before the first of `count` evaluations, one CURSOR."""
    return np.array([(0, count, 0, ALL_FINITE)], CURSOR)


def step_table(
    c_in: ArrayLike,
    weights: NDArray[np.float64],
    draws: Sequence[bool] | NDArray[np.bool_],
    guidance: float,
    rescale: float,
) -> NDArray[Any]:
    """The rows of a plan, STEP [n].

    `c_in` [n]; `weights` [n, K, K + 2] over [S ; guided ; noise], with `q` written out; `draws` [n]
    says where fresh noise is used, and its rows stand in the noise table in that order.
    `guidance` is the scale, `rescale` phi of Lin et al. (2023), section 3.4. Raises ValueError
    where an array does not fit, or K is above 5.
    """
    count, order, columns = weights.shape
    if not 1 <= order <= MAX_ORDER or columns != order + 2:
        raise ValueError(
            f"weights of shape {weights.shape}; [n, K, K + 2] with K of 1 to {MAX_ORDER} is wanted"
        )
    if np.shape(c_in) != (count,) or np.shape(draws) != (count,):
        raise ValueError(f"c_in and draws must have one value for each of {count} evaluations")
    drawn = np.asarray(draws, np.bool_)
    table = np.zeros(count, STEP)
    table["c_in"] = c_in
    table["guidance"] = guidance
    table["rescale"] = rescale
    table["noise"] = np.where(drawn, np.cumsum(drawn) - 1, NO_NOISE)
    table["order"] = order
    table["weights"][:, :order, :order] = weights[:, :, :order]
    table["weights"][:, :order, MAX_ORDER:] = weights[:, :, order:]
    return table

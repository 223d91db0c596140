"""Numbers whose byte is hard to get right."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def close_to_halves() -> NDArray[np.float32]:
    """Numbers between -1 and 1 whose byte is all but a half, and others that are a trap."""
    halves = 2 * (np.arange(-1, 256) + 0.5) / 255 - 1
    near = halves[:, None] + np.arange(-64, 65) * 2.0**-24
    found = [near.astype(np.float32).ravel()]
    for way in (-np.inf, np.inf):
        found.append(np.nextafter(found[0], np.float32(way)))
    edges = np.array([0, 1, -1, 1e-45, 1e-38, 1e-8, 3.4028235e38, 9, 65504], np.float32)
    for way in (-np.inf, np.inf):
        found.append(np.nextafter(edges[:-3], np.float32(way)))
    found += [edges, -edges]
    return np.concatenate(found)


def every(dtype: Any) -> NDArray[Any]:
    """All numbers of a type of 16 bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def as_image(values: NDArray[Any]) -> NDArray[Any]:
    """The values [n] as one image [1, 3, n]: in each colour all of them, in another order."""
    return np.stack([np.roll(values, 7 * colour) for colour in range(3)])[None]

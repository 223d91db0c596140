"""`prepare`: the model's input from the first latent."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.launch import Launch

THREADS = 256


def parameters(element_bytes: int) -> tuple[Parameter, ...]:
    """The parameter table; `element_bytes` is the size of the model's input type."""
    return (
        Parameter("cursor", "pointer", alignment=4),
        Parameter("steps", "pointer", alignment=8),
        Parameter("state", "pointer", alignment=4),  # [K, images, elements] float32
        Parameter("input", "pointer", alignment=element_bytes),  # [rows, images, elements]
        Parameter("elements", "int32"),  # of one image
        Parameter("rows", "int32"),  # 2 with guidance, else 1
    )


def launch(elements: int, images: int) -> Launch:
    """One thread for each element of an image."""
    blocks = -(-elements // THREADS)
    return Launch(grid=(blocks, images, 1), block=(THREADS, 1, 1))


def reference(state: NDArray[Any], step: Any, rows: int) -> NDArray[np.float64]:
    """What the kernel writes, before the cast: [rows, images, elements] from [K, images, elements].

    `step` is one row of the step table.
    """
    scaled = state[0].astype(np.float64) * float(step["c_in"])
    return np.broadcast_to(scaled, (rows, *scaled.shape))

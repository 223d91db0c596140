"""`pixels`: what a VAE decodes to, as the bytes of a picture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.tiles import ELEMENTS
from diffusion_rt.kernels.variant import Variant

COLOURS = 3
VECTOR = 8
THREADS = 256

PARAMETERS = (
    Parameter("image", "pointer", alignment=16),  # [images, 3, count], about -1 to 1
    Parameter("output", "pointer", alignment=8),  # [images, count, 3] bytes
    Parameter("not_finite", "pointer", alignment=4),  # int32: 1 where a number is not, else kept
    Parameter("count", "int32"),  # pixels of an image
)

VARIANTS = tuple(
    Variant(
        name=f"pixels.{dtype}",
        kernel="pixels",
        source="pixels.cu",
        constants=(("ELEMENT", element),),
        parameters=PARAMETERS,
        registers=48,
    )
    for dtype, (element, _) in ELEMENTS.items()
)


def launch(count: int, images: int) -> Launch:
    """One thread for eight pixels; raises Misuse where the kernel does not take as many."""
    if not 1 <= count < 2**31 // COLOURS:
        raise Misuse(f"pixels of {count} pixels an image, 1 to {2**31 // COLOURS - 1} are taken")
    blocks = -(-count // (THREADS * VECTOR))
    return Launch(grid=(blocks, images, 1), block=(THREADS, 1, 1))


def reference(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes [images, count, 3] of [images, 3, count]: -1 is 0, 1 is 255, NaN is 0.

    Every step is rounded to float32, as plain code in that type does: which way a number close to a
    half goes is settled by that.
    """
    exact = image.astype(np.float64)
    unit = np.fmin(np.fmax((exact / 2 + 0.5).astype(np.float32), 0), 1).astype(np.float64)
    scaled = (unit * 255).astype(np.float32)
    return np.rint(scaled).astype(np.uint8).swapaxes(1, 2)

"""`select_row`: of each image the row of one token, as text encoders pool."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.tiles import ELEMENTS
from diffusion_rt.kernels.variant import Variant

VECTOR = 8
THREADS = 128
LARGEST = -1
"""Given as the token: the first largest id is meant."""

PARAMETERS = (
    Parameter("ids", "pointer", alignment=8),  # [images, tokens] int64
    Parameter("source", "pointer", alignment=16),  # [images, tokens, columns]
    Parameter("output", "pointer", alignment=16),  # [images, columns]
    Parameter("tokens", "int32"),
    Parameter("columns", "int32"),
    Parameter("token", "int32"),
    Parameter("ids_stride", "int32"),  # of an image
    Parameter("image_stride", "int32"),
    Parameter("token_stride", "int32"),
    Parameter("output_stride", "int32"),
)

VARIANTS = tuple(
    Variant(
        name=f"select_row.{dtype}",
        kernel="select_row",
        source="select_row.cu",
        constants=(("ELEMENT", element),),
        parameters=PARAMETERS,
        registers=48,
        overlaps=True,
    )
    for dtype, (element, _) in ELEMENTS.items()
)


def launch(images: int, columns: int) -> Launch:
    """One block for each image; raises Misuse where the kernel does not take the columns."""
    if columns < 1 or columns % VECTOR:
        raise Misuse(f"select_row of {columns} columns; a multiple of {VECTOR} is wanted")
    return Launch(grid=(images, 1, 1), block=(THREADS, 1, 1))


def reference(ids: NDArray[Any], source: NDArray[Any], token: int) -> NDArray[Any]:
    """[images, columns]: the row of the first id equal to the token, or of the first largest.

    Where no id is the token it is row 0.
    """
    place = (ids if token < 0 else ids == token).argmax(axis=1)
    rows: NDArray[Any] = source[np.arange(len(ids)), place]
    return rows

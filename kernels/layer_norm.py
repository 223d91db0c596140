"""`layer_norm`: each row to mean 0 and deviation 1, then weight and bias."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.tiles import ELEMENTS
from diffusion_rt.kernels.variant import Variant

VECTOR = 8  # columns that a thread takes at once
MOST_COLUMNS = 8 * 32 * VECTOR  # of a warp, which takes a row
ROWS = 4  # of a block

PARAMETERS = (
    Parameter("input", "pointer", alignment=16),  # [rows, columns]
    Parameter("weight", "pointer", alignment=16),  # [columns]
    Parameter("bias", "pointer", alignment=16),  # [columns]
    Parameter("output", "pointer", alignment=16),  # [rows, columns]; may be the input
    Parameter("rows", "int32"),
    Parameter("columns", "int32"),
    Parameter("epsilon", "float32"),
)

VARIANTS = tuple(
    Variant(
        name=f"layer_norm.{dtype}",
        kernel="layer_norm",
        source="layer_norm.cu",
        constants=(("ELEMENT", element),),
        parameters=PARAMETERS,
        registers=96,
        overlaps=True,
        threads=32 * ROWS,
    )
    for dtype, (element, _) in ELEMENTS.items()
)


def launch(rows: int, columns: int) -> Launch:
    """A warp for each row; raises Misuse where the kernel does not take the columns."""
    if columns % VECTOR or not 0 < columns <= MOST_COLUMNS:
        raise Misuse(
            f"layer_norm over {columns} columns; a multiple of {VECTOR} up to {MOST_COLUMNS} is "
            "wanted"
        )
    return Launch(grid=(-(-rows // ROWS), 1, 1), block=(32 * ROWS, 1, 1))


def reference(
    values: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], epsilon: float
) -> NDArray[np.float64]:
    """Layer normalisation (Ba et al., 2016) of [rows, columns] over the columns."""
    x = values.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    result: NDArray[np.float64] = centred * scale * weight.astype(np.float64)
    result += bias.astype(np.float64)
    return result

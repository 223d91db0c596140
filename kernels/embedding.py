"""`embedding`: output[image, token] = table[ids[image, token]] + positions[token]."""

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

PARAMETERS = (
    Parameter("ids", "pointer", alignment=8),  # [images, tokens] int64
    Parameter("table", "pointer", alignment=16),  # [vocabulary, columns]
    Parameter("positions", "pointer", alignment=16),  # [at least tokens, columns]
    Parameter("output", "pointer", alignment=16),  # [images, tokens, columns]
    Parameter("columns", "int32"),
    Parameter("vocabulary", "int32"),
    Parameter("ids_stride", "int32"),  # of an image
)

VARIANTS = tuple(
    Variant(
        name=f"embedding.{dtype}",
        kernel="embedding",
        source="embedding.cu",
        constants=(("ELEMENT", element),),
        parameters=PARAMETERS,
        registers=48,
        overlaps=True,
    )
    for dtype, (element, _) in ELEMENTS.items()
)


def launch(images: int, tokens: int, columns: int) -> Launch:
    """One block for each token; raises Misuse where the kernel does not take the columns."""
    if columns < 1 or columns % VECTOR:
        raise Misuse(f"embedding of {columns} columns; a multiple of {VECTOR} is wanted")
    return Launch(grid=(tokens, images, 1), block=(THREADS, 1, 1))


def reference(
    ids: NDArray[Any], table: NDArray[Any], positions: NDArray[Any]
) -> NDArray[np.float64]:
    """[images, tokens, columns] in float64; NaN where a token is outside the vocabulary."""
    known = (ids >= 0) & (ids < len(table))
    rows = table.astype(np.float64)[np.where(known, ids, 0)]
    rows[~known] = np.nan
    sums: NDArray[np.float64] = rows + positions.astype(np.float64)[: ids.shape[1]]
    return sums

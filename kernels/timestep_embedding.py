"""`timestep_embedding`: sines and cosines of timesteps or sizes, as wide as two halves."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.tiles import ELEMENTS
from diffusion_rt.kernels.variant import Variant

THREADS = 256

PARAMETERS = (
    Parameter("values", "pointer", alignment=4),  # [rows] float32
    Parameter("frequencies", "pointer", alignment=4),  # [width] float32
    Parameter("output", "pointer", alignment=2),  # [rows, 2 width]
    Parameter("width", "int32"),
    Parameter("inner", "int32"),  # rows that are inner_stride apart; then the next outer_stride
    Parameter("outer_stride", "int32"),
    Parameter("inner_stride", "int32"),
    Parameter("cosine_first", "int32"),  # 1 or 0
)

VARIANTS = tuple(
    Variant(
        name=f"timestep_embedding.{dtype}",
        kernel="timestep_embedding",
        source="timestep_embedding.cu",
        constants=(("ELEMENT", element),),
        parameters=PARAMETERS,
        registers=40,
        overlaps=True,
    )
    for dtype, (element, _) in ELEMENTS.items()
)


def launch(rows: int, width: int) -> Launch:
    """One thread for a sine and its cosine."""
    return Launch(grid=(-(-width // THREADS), rows, 1), block=(THREADS, 1, 1))


def reference(
    values: NDArray[Any], frequencies: NDArray[Any], cosine_first: bool
) -> NDArray[np.float64]:
    """[..., 2 width] from values [...] and frequencies [width]; angles are rounded to float32."""
    angles = values[..., None].astype(np.float32) * frequencies.astype(np.float32)
    waves = [np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))]
    return np.concatenate(waves[::-1] if cosine_first else waves, axis=-1)

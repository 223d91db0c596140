"""`guidance_statistics` and `guided_step`: from the model's prediction to the next latents."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.step_table import MAX_ORDER

THREADS = 256
CHUNK = 2048  # elements of a block in guidance_statistics
STATISTICS = 4  # floats for each chunk


def statistics_parameters(element_bytes: int) -> tuple[Parameter, ...]:
    """The parameter table of guidance_statistics, for a prediction of that size of elements."""
    return (
        Parameter("cursor", "pointer", alignment=4),
        Parameter("steps", "pointer", alignment=8),
        Parameter("prediction", "pointer", alignment=element_bytes),  # [rows, images, elements]
        Parameter("partial", "pointer", alignment=4),  # [images, chunks, 4] float32
        Parameter("elements", "int32"),
        Parameter("rows", "int32"),
    )


def parameters(element_bytes: int) -> tuple[Parameter, ...]:
    """The parameter table of guided_step."""
    return (
        Parameter("cursor", "pointer", alignment=4),
        Parameter("steps", "pointer", alignment=8),
        Parameter("prediction", "pointer", alignment=element_bytes),
        # [draws, images, elements] float32; null where the plan draws nothing
        Parameter("noise", "pointer", alignment=4, nullable=True),
        Parameter("partial", "pointer", alignment=4),
        Parameter("state", "pointer", alignment=4),  # [K, images, elements] float32, in place
        Parameter("elements", "int32"),
        Parameter("rows", "int32"),
    )


def chunks(elements: int) -> int:
    """How many chunks an image is cut into for the statistics."""
    return -(-elements // CHUNK)


def partial_bytes(elements: int, images: int) -> int:
    """The size of the statistics between the two kernels."""
    return images * chunks(elements) * STATISTICS * np.dtype(np.float32).itemsize


def statistics_launch(elements: int, images: int) -> Launch:
    """One block for each chunk; where the step does not rescale, the blocks end at once."""
    return Launch(grid=(chunks(elements), images, 1), block=(THREADS, 1, 1))


def launch(elements: int, images: int) -> Launch:
    """One thread for each element of an image."""
    blocks = -(-elements // THREADS)
    return Launch(grid=(blocks, images, 1), block=(THREADS, 1, 1))


def guidance(prediction: NDArray[Any], scale: float, rescale: float) -> NDArray[np.float64]:
    """The guided prediction [images, elements] from [rows, images, elements].

    Classifier-free guidance (Ho and Salimans, 2022), then the rescale of Lin et al. (2023),
    section 3.4. One row is the conditional prediction, which stays as it is.
    """
    if len(prediction) == 1:
        conditional: NDArray[np.float64] = prediction[0].astype(np.float64)
        return conditional
    unconditional, conditional = prediction.astype(np.float64)
    guided: NDArray[np.float64] = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    ratio = conditional.std(-1, ddof=1, keepdims=True) / guided.std(-1, ddof=1, keepdims=True)
    rescaled: NDArray[np.float64] = guided * (rescale * ratio + (1 - rescale))
    return rescaled


def reference(
    prediction: NDArray[Any], noise: NDArray[Any] | None, state: NDArray[Any], step: Any
) -> NDArray[np.float64]:
    """The latents after a step, [K, images, elements].

    `prediction` [rows, images, elements]; `noise` [images, elements] is the row this step draws;
    `state` [K, images, elements]; `step` is one row of the step table.
    """
    order = int(step["order"])
    weights = step["weights"].astype(np.float64)
    latents = state[:order].astype(np.float64)
    guided = guidance(prediction, float(step["guidance"]), float(step["rescale"]))
    result: NDArray[np.float64] = np.einsum("kj,jie->kie", weights[:order, :order], latents)
    result += weights[:order, MAX_ORDER, None, None] * guided
    if noise is not None:
        result += weights[:order, MAX_ORDER + 1, None, None] * noise.astype(np.float64)
    return result

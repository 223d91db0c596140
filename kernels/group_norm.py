"""`group_statistics` and `group_norm`: groups of channels to mean 0 and deviation 1, NHWC."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch

VECTOR = 8  # channels of a thread
WARP = 32
THREADS = 256  # aimed at; a pixel of many channels takes more
MOST_CHANNELS = 2560
MOST_CHUNKS = 64  # of an image, for the statistics
APPLIED_PIXELS = 8  # of a thread, for the normalisation

STATISTICS_PARAMETERS = (
    Parameter("input", "pointer", alignment=16),  # [images, pixels, channels]
    Parameter("partial", "pointer", alignment=4),  # [images, chunks, groups, 2] float32
    Parameter("arrived", "pointer", alignment=4),  # [images] uint32, zero before the first launch
    Parameter("moments", "pointer", alignment=4),  # [images, groups, 2] float32
    Parameter("pixels", "int32"),
    Parameter("channels", "int32"),
    Parameter("groups", "int32"),
    Parameter("chunk_pixels", "int32"),
    Parameter("lanes", "int32"),
    Parameter("epsilon", "float32"),
)
PARAMETERS = (
    Parameter("input", "pointer", alignment=16),
    Parameter("moments", "pointer", alignment=4),
    Parameter("weight", "pointer", alignment=16),  # [channels]
    Parameter("bias", "pointer", alignment=16),  # [channels]
    Parameter("output", "pointer", alignment=16),  # [images, pixels, channels]; may be the input
    Parameter("pixels", "int32"),
    Parameter("channels", "int32"),
    Parameter("groups", "int32"),
    Parameter("chunk_pixels", "int32"),
    Parameter("lanes", "int32"),
)


@dataclass(frozen=True, slots=True)
class Cut:
    """How an image is cut into blocks of pixels, and how many pixels a block takes at once."""

    launch: Launch
    chunk_pixels: int
    lanes: int


def statistics_cut(images: int, pixels: int, channels: int, groups: int) -> Cut:
    """For group_statistics; raises Misuse where the kernel does not take the channels."""
    lanes = _lanes(channels, groups)
    return _cut(images, pixels, channels, lanes, max(lanes, -(-pixels // MOST_CHUNKS)))


def cut(images: int, pixels: int, channels: int, groups: int) -> Cut:
    """For group_norm."""
    lanes = _lanes(channels, groups)
    return _cut(images, pixels, channels, lanes, lanes * APPLIED_PIXELS)


def partial_bytes(images: int, pixels: int, channels: int, groups: int) -> int:
    """The size of what the blocks of group_statistics leave for the last of them."""
    chunks = statistics_cut(images, pixels, channels, groups).launch.grid[0]
    return images * chunks * groups * 2 * np.dtype(np.float32).itemsize


def _lanes(channels: int, groups: int) -> int:
    if channels % VECTOR or not 0 < channels <= MOST_CHANNELS or groups < 1 or channels % groups:
        raise Misuse(
            f"group_norm of {channels} channels in {groups} groups; the channels must divide by "
            f"{VECTOR} and by the groups, and be at most {MOST_CHANNELS}"
        )
    return max(1, THREADS // (channels // VECTOR))


def _cut(images: int, pixels: int, channels: int, lanes: int, chunk_pixels: int) -> Cut:
    threads = -(-channels // VECTOR * lanes // WARP) * WARP
    grid = (-(-pixels // chunk_pixels), images, 1)
    return Cut(Launch(grid=grid, block=(threads, 1, 1)), chunk_pixels, lanes)


def reference(
    values: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    groups: int,
    epsilon: float,
    activate: bool,
) -> NDArray[np.float64]:
    """Group normalisation (Wu and He, 2018) of [images, pixels, channels], then SiLU if asked."""
    images, pixels, channels = values.shape
    x = values.astype(np.float64).reshape(images, pixels, groups, channels // groups)
    centred = x - x.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)
    result: NDArray[np.float64] = normal.reshape(values.shape) * weight.astype(np.float64)
    result += bias.astype(np.float64)
    return result / (1 + np.exp(-result)) if activate else result

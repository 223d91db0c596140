"""`group_statistics` and `group_norm`: groups of channels to mean 0 and deviation 1, NHWC.

The channels lie in one source, or side by side in two: what concatenation would write.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.tiles import ELEMENTS
from diffusion_rt.kernels.variant import Variant

VECTOR = 8  # channels of a thread
WARP = 32
THREADS = 256  # aimed at; a pixel of many channels takes more
MOST_THREADS = 320
MOST_CHANNELS = MOST_THREADS * VECTOR
MOST_CHUNKS = 256  # of an image, for the statistics
AT_ONCE = 4  # pixels that a thread has under way
APPLIED_PIXELS = 8  # of a thread, for the normalisation
FAST = ("ex2.approx.ftz.f32", "rcp.approx.ftz.f32")  # of a SiLU; the exact ones are bound by issue

STATISTICS_PARAMETERS = (
    Parameter("first", "pointer", alignment=16),  # [images, pixels, C] or [..., C1]
    Parameter("second", "pointer", alignment=16, nullable=True),  # [images, pixels, C - C1]
    Parameter("partial", "pointer", alignment=8),  # [images, groups, chunks, 2] float32
    Parameter("arrived", "pointer", alignment=4),  # [images] uint32, zero before the first launch
    Parameter("moments", "pointer", alignment=4),  # [images, groups, 2] float32
    Parameter("pixels", "int32"),
    Parameter("channels", "int32"),  # C
    Parameter("first_channels", "int32"),  # C1, or C
    Parameter("first_stride", "int32"),  # of a pixel
    Parameter("second_stride", "int32"),
    Parameter("groups", "int32"),
    Parameter("chunk_pixels", "int32"),
    Parameter("lanes", "int32"),
    Parameter("epsilon", "float32"),
)
PARAMETERS = (
    Parameter("first", "pointer", alignment=16),
    Parameter("second", "pointer", alignment=16, nullable=True),
    Parameter("moments", "pointer", alignment=4),
    Parameter("weight", "pointer", alignment=16),  # [C]
    Parameter("bias", "pointer", alignment=16),  # [C]
    Parameter("output", "pointer", alignment=16),  # [images, pixels, C]; may be the first source
    Parameter("pixels", "int32"),
    Parameter("channels", "int32"),
    Parameter("first_channels", "int32"),
    Parameter("first_stride", "int32"),
    Parameter("second_stride", "int32"),
    Parameter("output_stride", "int32"),
    Parameter("groups", "int32"),
    Parameter("chunk_pixels", "int32"),
    Parameter("lanes", "int32"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNorm:
    """A group normalisation's sizes, and how its two kernels are launched.

    Strides count elements from one pixel to the next; 0 stands for pixels that follow one another.
    Raises Misuse, naming the number, where the kernels do not take the sizes.
    """

    dtype: str  # float16, bfloat16 or float32, of all arrays
    images: int
    pixels: int  # of one image
    channels: int
    groups: int
    epsilon: float
    silu: bool
    first_channels: int = 0  # of the first of two sources; 0 where there is one
    first_stride: int = 0
    second_stride: int = 0
    output_stride: int = 0
    multiprocessors: int = 132  # of the chip: the statistics give each about two blocks

    def __post_init__(self) -> None:
        channels, groups = self.channels, self.groups
        if channels % VECTOR or not 0 < channels <= MOST_CHANNELS:
            raise Misuse(
                f"group_norm of {channels} channels; a multiple of {VECTOR} up to {MOST_CHANNELS} "
                "is wanted"
            )
        if groups < 1 or channels % groups:
            raise Misuse(f"group_norm of {channels} channels in {groups} groups")
        if self.images < 1 or self.pixels < 1:
            raise Misuse(f"group_norm of {self.images} images of {self.pixels} pixels")
        if self.first_channels % VECTOR or not 0 <= self.first_channels <= channels:
            raise Misuse(
                f"first_channels={self.first_channels} of a group_norm of {channels}; a multiple "
                f"of {VECTOR} within them is wanted"
            )
        object.__setattr__(self, "first_channels", self.first_channels or channels)
        widths = {
            "first_stride": self.first_channels,
            "second_stride": channels - self.first_channels,
            "output_stride": channels,
        }
        for name, width in widths.items():
            stride = getattr(self, name) or width
            if stride % VECTOR or stride < width:
                raise Misuse(
                    f"{name}={stride} of a group_norm; a multiple of {VECTOR}, at least {width}, "
                    "is wanted"
                )
            object.__setattr__(self, name, stride)

    @property
    def variants(self) -> tuple[str, str]:
        """The rows of the catalogue: of the statistics, and of the normalisation."""
        norm = "group_norm_silu" if self.silu else "group_norm"
        return f"group_statistics.{self.dtype}", f"{norm}.{self.dtype}"

    @property
    def lanes(self) -> int:
        """Pixels that a block takes at once."""
        return max(1, THREADS // (self.channels // VECTOR))

    @property
    def chunk_pixels(self) -> tuple[int, int]:
        """Pixels of a block, in each of the two kernels."""
        chunks = min(MOST_CHUNKS, max(1, 2 * self.multiprocessors // self.images))
        return (
            max(self.lanes * AT_ONCE, -(-self.pixels // chunks)),
            self.lanes * APPLIED_PIXELS,
        )

    @property
    def launches(self) -> tuple[Launch, Launch]:
        """Of the statistics, and of the normalisation."""
        threads = -(-self.channels // VECTOR * self.lanes // WARP) * WARP
        of_statistics, of_norm = (
            Launch(grid=(-(-self.pixels // chunk), self.images, 1), block=(threads, 1, 1))
            for chunk in self.chunk_pixels
        )
        return of_statistics, of_norm

    @property
    def partial_bytes(self) -> int:
        """What the blocks of the statistics leave for the last of them."""
        return self.images * self.groups * self.launches[0].grid[0] * 8

    @property
    def moments_bytes(self) -> int:
        """What the statistics leave for the normalisation."""
        return self.images * self.groups * 8

    @property
    def counters(self) -> int:
        """uint32 counters of the statistics, zero before the first launch, and after each."""
        return self.images

    def statistics_arguments(
        self, *, first: int, second: int = 0, partial: int, arrived: int, moments: int
    ) -> tuple[Value, ...]:
        """Arguments in the order of STATISTICS_PARAMETERS, from addresses."""
        return (
            *(first, second, partial, arrived, moments),
            *(self.pixels, self.channels, self.first_channels),
            *(self.first_stride, self.second_stride),
            *(self.groups, self.chunk_pixels[0], self.lanes, self.epsilon),
        )

    def arguments(
        self, *, first: int, second: int = 0, moments: int, weight: int, bias: int, output: int
    ) -> tuple[Value, ...]:
        """Arguments in the order of PARAMETERS, from addresses."""
        return (
            *(first, second, moments, weight, bias, output),
            *(self.pixels, self.channels, self.first_channels),
            *(self.first_stride, self.second_stride, self.output_stride),
            *(self.groups, self.chunk_pixels[1], self.lanes),
        )


def _variants(dtype: str) -> tuple[Variant, ...]:
    constants = (("ELEMENT", ELEMENTS[dtype][0]),)
    statistics = Variant(
        name=f"group_statistics.{dtype}",
        kernel="group_statistics",
        source="group_statistics.cu",
        constants=constants,
        parameters=STATISTICS_PARAMETERS,
        registers=96,
        overlaps=True,
        shared_bytes=2 * 4 * MOST_CHANNELS + 4,
        threads=MOST_THREADS,
    )
    norms = (
        Variant(
            name=f"group_norm{suffix}.{dtype}",
            kernel="group_norm",
            source="group_norm.cu",
            constants=(*constants, ("ACTIVATE", str(activate))),
            parameters=PARAMETERS,
            registers=96,
            overlaps=True,
            threads=MOST_THREADS,
            instructions=FAST if activate and dtype != "float32" else (),
        )
        for activate, suffix in enumerate(("", "_silu"))
    )
    return statistics, *norms


VARIANTS = tuple(variant for dtype in ELEMENTS for variant in _variants(dtype))


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

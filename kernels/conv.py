"""`conv`: a convolution over NHWC as a product, its epilogue as of `gemm`, with float32 sums.

A row of the product is a pixel of the output, its depth runs over the filter's pixels and their
channels (implicit GEMM): nothing is unfolded in memory. The input may be two sources side by side
in channels, and may be enlarged by nearest neighbours while it is read.

Where it is enlarged to exactly twice its size, a 3x3 filter meets four distinct pixels at a time:
for each parity of the output's pixel it is a 2x2 filter over the source, its weights sums of the
nine (`doubled_filters`), which is 4/9 of the products. At a size one less the last window hangs
over the cut through a pixel, where half of a sum would be too much: such a filter stays 3x3.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels import epilogue as epilogues
from diffusion_rt.kernels import tiles
from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.epilogue import Activation, Epilogue
from diffusion_rt.kernels.gemm import Product
from diffusion_rt.kernels.tactic import Encode, Operands
from diffusion_rt.kernels.variant import Variant

Padding = tuple[int, int, int, int]

PARAMETERS = (
    Parameter("first", "pointer", alignment=16),  # [images, height, width, C] or [..., C1]
    Parameter("second", "pointer", alignment=16, nullable=True),  # [images, height, width, C - C1]
    Parameter("weight", "pointer", alignment=16),  # [N, kh, kw, C], or [N, 16, C] if doubled
    Parameter("bias", "pointer", alignment=16, nullable=True),  # [N]
    Parameter("vector", "pointer", alignment=16, nullable=True),  # [images, N]
    Parameter("residual", "pointer", alignment=16, nullable=True),  # [images, oh, ow, N]
    Parameter("output", "pointer", alignment=16),  # [images, oh, ow, N]; may be the residual
    Parameter(
        "partial", "pointer", alignment=16, nullable=True
    ),  # [splits, images oh ow, N] float32
    Parameter("arrived", "pointer", alignment=4, nullable=True),  # [tiles] uint32
    Parameter("rows", "int32"),  # images oh ow
    Parameter("columns", "int32"),  # N
    Parameter("depth", "int32"),  # kh kw C, or 4 C if doubled
    Parameter("channels", "int32"),  # C
    Parameter("first_channels", "int32"),  # C1, or C
    Parameter("first_stride", "int32"),  # of a pixel
    Parameter("second_stride", "int32"),
    Parameter("height", "int32"),  # of the source as it lies in memory
    Parameter("width", "int32"),
    Parameter("seen_height", "int32"),  # after enlarging
    Parameter("seen_width", "int32"),
    Parameter("output_width", "int32"),
    Parameter("kernel_width", "int32"),
    Parameter("stride", "int32"),
    Parameter("top", "int32"),  # padding
    Parameter("left", "int32"),
    Parameter("shift", "int32"),  # 1 where pixels are read twice each way, else 0
    Parameter("doubled", "int32"),  # 1 where each parity has filters of its own, else 0
    Parameter("image_rows", "int32"),  # oh ow
    Parameter("vector_stride", "int32"),
    Parameter("residual_stride", "int32"),
    Parameter("output_stride", "int32"),
    Parameter("activation", "int32"),
    Parameter("split_depth", "int32"),  # of the depth
)

TAPS = 16  # of a doubled convolution's filter: four parities, each of 2x2


def doubles(
    size: tuple[int, int],
    enlarged: tuple[int, int] | None,
    kernel: tuple[int, int],
    stride: int,
    padding: Padding,
) -> bool:
    """Whether 2x2 filters, one for each parity, do what a filter does over an enlarged source."""
    twice = enlarged == (2 * size[0], 2 * size[1])
    return twice and kernel == (3, 3) and stride == 1 and padding == (1, 1, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution's sizes; strides count elements from one pixel to the next.

    `padding` is (top, left, bottom, right). `enlarged` is the size (height, width) that the source
    seems to have when each pixel is read twice in both directions: twice its own, or one less. One
    that is `doubled` takes the weight of `doubled_filters`. A stride of 0 stands for pixels that
    follow one another. Raises Misuse, naming the number, where a width or stride is no multiple of
    8, or nothing is left of the output.
    """

    dtype: str  # float16, bfloat16 or float32, of all arrays
    images: int
    height: int
    width: int
    channels: int  # C of the source, or of both
    filters: int  # N
    kernel: tuple[int, int]
    stride: int = 1
    padding: Padding = (0, 0, 0, 0)
    enlarged: tuple[int, int] | None = None
    first_channels: int = 0  # of the first of two sources; 0 where there is one
    first_stride: int = 0
    second_stride: int = 0
    vector_stride: int = 0
    residual_stride: int = 0
    output_stride: int = 0
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        if min(self.images, self.height, self.width, *self.kernel, self.stride) < 1:
            raise Misuse(
                f"a convolution of {self.images} x {self.height} x {self.width} with a filter of "
                f"{self.kernel}, stride {self.stride}"
            )
        for name, seen, size in zip(
            ("height", "width"), self.seen, (self.height, self.width), strict=True
        ):
            if self.enlarged and seen not in (2 * size, 2 * size - 1):
                raise Misuse(f"{name} {size} enlarged to {seen}; {2 * size} or one less is wanted")
        if min(self.padding) < 0 or min(self.output_size) < 1:
            raise Misuse(
                f"a convolution of {self.seen} with a filter of {self.kernel} and padding "
                f"{self.padding} leaves nothing"
            )
        product = self.product  # It checks widths and strides.
        object.__setattr__(self, "first_channels", self.first_channels or self.channels)
        for name in ("first", "second"):
            width = product.first_depth if name == "first" else self.channels - product.first_depth
            object.__setattr__(self, f"{name}_stride", getattr(self, f"{name}_stride") or width)
        for name in ("vector_stride", "residual_stride", "output_stride"):
            object.__setattr__(self, name, getattr(product, name))

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width that the filter moves over."""
        return self.enlarged or (self.height, self.width)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        height, width = self.seen
        return (
            (height + top + bottom - self.kernel[0]) // self.stride + 1,
            (width + left + right - self.kernel[1]) // self.stride + 1,
        )

    @property
    def rows(self) -> int:
        """Pixels of the output, of all images: M of the product."""
        return self.images * self.output_size[0] * self.output_size[1]

    @property
    def doubled(self) -> bool:
        """Whether each parity of pixels has a filter of its own."""
        size = self.height, self.width
        return doubles(size, self.enlarged, self.kernel, self.stride, self.padding)

    @property
    def parts(self) -> int:
        """Filters of each row of the weight: one for each parity, or one."""
        return 4 if self.doubled else 1

    @property
    def taps(self) -> tuple[int, int]:
        """Pixels of the source that one filter reads, down and across."""
        return (2, 2) if self.doubled else self.kernel

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[N, kh, kw, C], or [N, 16, C] if it is doubled."""
        taps = (TAPS,) if self.doubled else self.kernel
        return (self.filters, *taps, self.channels)

    @property
    def depth(self) -> int:
        """K of the product: all channels of a filter's taps."""
        return self.taps[0] * self.taps[1] * self.channels

    @property
    def product(self) -> Product:
        """One pixel of the filter as a product; its strides are those of the convolution."""
        return Product(
            dtype=self.dtype,
            rows=self.rows,
            columns=self.filters,
            depth=self.channels,
            first_depth=0 if self.first_channels == self.channels else self.first_channels,
            image_rows=self.rows // self.images,
            first_stride=self.first_stride,
            second_stride=self.second_stride,
            vector_stride=self.vector_stride,
            residual_stride=self.residual_stride,
            output_stride=self.output_stride,
            epilogue=self.epilogue,
        )

    @property
    def flops(self) -> int:
        """2 for each pixel of the output, filter, and weight that is multiplied."""
        return 2 * self.rows * self.filters * self.depth


@dataclass(frozen=True, slots=True)
class TiledConvolution:
    """The tactic of `conv.cu`: the product in tiles, and its depth perhaps in splits."""

    convolution: Convolution
    cut: tiles.Cut

    @property
    def name(self) -> str:
        """The tile and the splits."""
        return f"conv {self.cut.tile.name} {self.cut.splits}"

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        return f"conv_{self.cut.tile.name}.{self.convolution.dtype}"

    @property
    def launch(self) -> Launch:
        """Grid, block and dynamic shared memory."""
        return self.cut.launch

    @property
    def partial_bytes(self) -> int:
        """Scratch memory for the sums of the splits, or 0."""
        return self.cut.partial_bytes(self.convolution.rows, self.convolution.filters)

    @property
    def counters(self) -> int:
        """One for each tile where there are splits."""
        return self.cut.counters

    def cycles(self, limits: Limits) -> float:
        """How long it takes on a chip, by the model of `tiles`."""
        of = self.convolution
        return tiles.cycles(self.cut, of.dtype, of.rows, of.filters, limits)

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of PARAMETERS."""
        of, has = self.convolution, self.convolution.epilogue
        return (
            operands.first,
            operands.second,
            operands.weight,
            operands.bias if has.bias else 0,
            operands.vector if has.vector else 0,
            operands.residual if has.residual else 0,
            operands.output,
            operands.partial,
            operands.arrived,
            of.rows,
            of.filters,
            of.depth,
            of.channels,
            of.first_channels,
            of.first_stride,
            of.second_stride,
            of.height,
            of.width,
            *((of.height, of.width) if of.doubled else of.seen),
            of.output_size[1],
            of.taps[1],
            of.stride,
            *of.padding[:2],
            int(of.enlarged is not None and not of.doubled),
            int(of.doubled),
            of.rows // of.images,
            of.vector_stride,
            of.residual_stride,
            of.output_stride,
            has.number,
            self.cut.split_depth,
        )


def tactics(convolution: Convolution, limits: Limits) -> tuple[TiledConvolution, ...]:
    """All cuts worth measuring on a chip; the first is the one to take before that was done."""
    sizes = (convolution.dtype, convolution.rows, convolution.filters, convolution.depth)
    made = tiles.OF_CONVOLUTIONS[convolution.dtype]
    found = tiles.cuts(made, *sizes, convolution.epilogue, limits, parts=convolution.parts)
    return tuple(TiledConvolution(convolution, cut) for cut in found)


VARIANTS = tuple(
    Variant(
        name=f"conv_{tile.name}.{dtype}",
        kernel="conv",
        source="conv.cu",
        constants=(("ELEMENT", tiles.ELEMENTS[dtype][0]), *tile.constants),
        parameters=PARAMETERS,
        registers=tile.registers,
        overlaps=True,
        threads=tile.threads,
        instructions=tiles.instructions(dtype),
    )
    for dtype, made in tiles.OF_CONVOLUTIONS.items()
    for tile in made
)


def reference(
    x: NDArray[Any],
    weight: NDArray[Any],
    *,
    stride: int = 1,
    padding: Padding = (0, 0, 0, 0),
    enlarged: tuple[int, int] | None = None,
    bias: NDArray[Any] | None = None,
    vector: NDArray[Any] | None = None,
    activation: Activation = "none",
    residual: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The convolution of x [images, height, width, C] with weight [N, kh, kw, C], in float64.

    A weight of `doubled_filters`, [N, 16, C], is for an x that is enlarged to twice its size. The
    result is [images, oh, ow, N] (N / 2 with geglu), as is the residual; bias [N], vector
    [images, N]; padding (top, left, bottom, right).
    """
    source, factors = x.astype(np.float64), weight.astype(np.float64)
    if factors.ndim == 3:
        sums = _doubled_sums(source, factors)
    else:
        if enlarged is not None:
            rows, columns = (np.arange(size) // 2 for size in enlarged)
            source = source[:, rows][:, :, columns]
        top, left, bottom, right = padding
        source = np.pad(source, ((0, 0), (top, bottom), (left, right), (0, 0)))
        sums = _sums(source, factors, stride)
    images, oh, ow, filters = sums.shape
    result = epilogues.reference(
        sums.reshape(images, oh * ow, filters),
        bias=bias,
        vector=vector,
        activation=activation,
        residual=None if residual is None else residual.reshape(images, oh * ow, -1),
    )
    return result.reshape(images, oh, ow, -1)


def _sums(x: NDArray[np.float64], weight: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    images, height, width, _ = x.shape
    filters, kh, kw, _ = weight.shape
    oh, ow = (height - kh) // stride + 1, (width - kw) // stride + 1
    sums = np.zeros((images, oh, ow, filters))
    for y in range(kh):
        for z in range(kw):
            part = x[:, y : y + stride * oh : stride, z : z + stride * ow : stride]
            sums += part[:, :oh, :ow] @ weight[:, y, z].T
    return sums


def _doubled_sums(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    images, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = np.empty((images, 2 * height, 2 * width, len(weight)))
    for parity in range(4):
        y, z = divmod(parity, 2)
        source = padded[:, y : y + height + 1, z : z + width + 1]
        own = weight[:, 4 * parity : 4 * parity + 4]
        sums[:, y::2, z::2] = _sums(source, own.reshape(len(weight), 2, 2, -1), 1)
    return sums


def doubled_filters(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Filters [N, 3, 3, C] as [N, 16, C] for a source that is enlarged to twice its size.

    Tap (t, u) of parity (p, q) comes at place 8 p + 4 q + 2 t + u. Line 2 j of the output reads
    line j - 1 of the source once and line j twice, line 2 j + 1 reads j twice and j + 1 once; what
    is read twice meets the sum of two weights. Columns likewise. Sums are float32.
    """

    def summed(taps: NDArray[np.float32]) -> NDArray[np.float32]:  # [3, ...]
        first, middle, last = taps
        return np.stack([first, middle + last, first + middle, last])

    down = summed(np.moveaxis(weight.astype(np.float32), 1, 0))  # [p t, N, 3, C]
    both = summed(np.moveaxis(down, 2, 0))  # [q u, p t, N, C]
    split = both.reshape(2, 2, 2, 2, *both.shape[2:])  # [q, u, p, t, N, C]
    result = split.transpose(4, 2, 0, 3, 1, 5)
    return result.reshape(len(weight), TAPS, -1)

"""`conv` on sm_90a: a box of pixels moved by each tap of the filter, read by TMA.

The same operation as `conv`, for float16 and bfloat16, stride 1 and no activation; 1x1 filters are
products of `gemm_sm90`. Of enlarged sources it takes those of doubled convolutions. Proved as
`gemm_sm90` is; its speed is not measured.
"""

from dataclasses import dataclass

from diffusion_rt.kernels.conv import Convolution
from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.driver.tensor_map import TensorMap
from diffusion_rt.kernels.gemm_sm90 import ITEM, Sm90Product, half_of, variant_name, weight_map
from diffusion_rt.kernels.gemm_sm90 import tactics as product_tactics
from diffusion_rt.kernels.tactic import Encode, Operands
from diffusion_rt.kernels.tiles_sm90 import (
    ARCH,
    DEPTH,
    OF_CONVOLUTIONS,
    REGISTERS,
    THREADS,
    Cut,
    Tile,
    cuts,
    suits,
)
from diffusion_rt.kernels.variant import Variant

PARAMETERS = (
    Parameter("first", "tensor_map"),  # [images, height, width, C] or [..., C1]
    Parameter("second", "tensor_map"),  # [..., C - C1]; the first again where there is one source
    Parameter("weight", "tensor_map"),  # [N, kh kw C], or [N, 16 C] if doubled
    Parameter("bias", "pointer", alignment=16, nullable=True),  # [N]
    Parameter("vector", "pointer", alignment=16, nullable=True),  # [images, N]
    Parameter("residual", "pointer", alignment=16, nullable=True),  # [images, oh, ow, N]
    Parameter("output", "pointer", alignment=16),  # [images, oh, ow, N]; may be the residual
    Parameter("partial", "pointer", alignment=16, nullable=True),  # float32, Cut.partial_bytes
    Parameter("arrived", "pointer", alignment=4, nullable=True),  # [tiles] uint32
    Parameter("images", "int32"),
    Parameter("columns", "int32"),  # N
    Parameter("channels", "int32"),  # C
    Parameter("first_channels", "int32"),  # C1, or C
    Parameter("box_width", "int32"),  # pixels of a tile
    Parameter("box_height", "int32"),
    Parameter("boxes_across", "int32"),
    Parameter("boxes_down", "int32"),
    Parameter("output_height", "int32"),
    Parameter("output_width", "int32"),
    Parameter("kernel_width", "int32"),
    Parameter("taps", "int32"),  # kh kw, of one parity if doubled
    Parameter("top", "int32"),  # padding
    Parameter("left", "int32"),
    Parameter("doubled", "int32"),  # 1 where each parity has filters of its own, else 0
    Parameter("vector_stride", "int32"),
    Parameter("residual_stride", "int32"),
    Parameter("output_stride", "int32"),
    Parameter("splits", "int32"),
    Parameter("blocks", "int32"),  # of the depth
    Parameter("split_blocks", "int32"),
)


@dataclass(frozen=True, slots=True)
class Boxes:
    """The pixels of a tile, as a box, and how many boxes cover an image.

    Of a doubled convolution, those of each of the four parities of pixels.
    """

    width: int
    height: int
    across: int
    down: int

    @property
    def count(self) -> int:
        """Of one image, or of one parity."""
        return self.across * self.down


def boxes(convolution: Convolution, tile: Tile) -> Boxes:
    """The fewest boxes, of those the one nearest a square."""
    part = 2 if convolution.doubled else 1
    height, width = (-(-side // part) for side in convolution.output_size)
    shapes = [(tile.rows >> i, 1 << i) for i in range(tile.rows.bit_length())]
    found = [Boxes(w, h, -(-width // w), -(-height // h)) for w, h in shapes]
    return min(found, key=lambda made: (made.count, made.width + made.height))


@dataclass(frozen=True, slots=True)
class Sm90Convolution:
    """A convolution by one tile; a `Tactic`."""

    convolution: Convolution
    cut: Cut
    limits: Limits

    @property
    def name(self) -> str:
        """The tile and the splits."""
        return f"conv sm90 {self.cut.name}"

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        return variant_name("conv", self.cut.tile, self.convolution.dtype, geglu=False)

    @property
    def launch(self) -> Launch:
        """At most a block for each multiprocessor."""
        return self.cut.launch(self.limits)

    @property
    def partial_bytes(self) -> int:
        """Scratch memory for the sums of the splits, or 0."""
        return self.cut.partial_bytes

    @property
    def counters(self) -> int:
        """One for each tile where there are splits."""
        return self.cut.counters

    def cycles(self, limits: Limits) -> float:
        """How long it takes on a chip, by the model of `tiles_sm90`."""
        return self.cut.cycles(limits)

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of PARAMETERS."""
        if encode is None:
            raise Misuse(f"{self.name} wants tensor maps and nothing makes them")
        of, has = self.convolution, self.convolution.epilogue
        tile, made = self.cut.tile, boxes(self.convolution, self.cut.tile)
        both = [self._map("first", operands.first, of.first_channels, of.first_stride, made)]
        if of.first_channels < of.channels:
            rest = of.channels - of.first_channels
            both.append(self._map("second", operands.second, rest, of.second_stride, made))
        return (
            encode(both[0]),
            encode(both[-1]),
            encode(weight_map(of.dtype, operands.weight, of.filters, of.parts * of.depth, tile)),
            operands.bias if has.bias else 0,
            operands.vector if has.vector else 0,
            operands.residual if has.residual else 0,
            operands.output,
            operands.partial,
            operands.arrived,
            of.images,
            of.filters,
            of.channels,
            of.first_channels,
            made.width,
            made.height,
            made.across,
            made.down,
            *of.output_size,
            of.taps[1],
            of.taps[0] * of.taps[1],
            *of.padding[:2],
            int(of.doubled),
            of.vector_stride,
            of.residual_stride,
            of.output_stride,
            self.cut.splits,
            self.cut.blocks,
            self.cut.split_blocks,
        )

    def _map(self, name: str, address: int, channels: int, stride: int, made: Boxes) -> TensorMap:
        of, pixel = self.convolution, stride * ITEM
        return TensorMap(
            name=name,
            dtype=half_of(of.dtype),
            address=address,
            sizes=(channels, of.width, of.height, of.images),
            strides=(pixel, pixel * of.width, pixel * of.width * of.height),
            box=(DEPTH, made.width, made.height, 1),
        )


def tactics(
    convolution: Convolution, limits: Limits
) -> tuple[Sm90Convolution, ...] | tuple[Sm90Product, ...]:
    """All tiles worth measuring, the likely fastest first; none where the kernel does not suit."""
    of = convolution
    if of.kernel == (1, 1) and of.stride == 1 and of.enlarged is None and not any(of.padding):
        return product_tactics(of.product, limits)
    rest = of.channels - of.first_channels
    widths = (of.first_channels, rest) if rest else (of.first_channels,)
    fits = (
        suits(of.dtype, of.rows, of.filters, widths, limits)
        and of.epilogue.activation == "none"
        and of.stride == 1
        and (of.enlarged is None or of.doubled)
    )
    if not fits:
        return ()

    def count(tile: Tile) -> int:
        down = of.parts * -(-of.images * boxes(of, tile).count // tile.cluster)
        return down * -(-of.filters // tile.columns)

    blocks = of.taps[0] * of.taps[1] * sum(-(-width // DEPTH) for width in widths)
    found = cuts(OF_CONVOLUTIONS[of.dtype], count, blocks, limits)
    return tuple(Sm90Convolution(of, cut, limits) for cut in found)


VARIANTS = tuple(
    Variant(
        name=variant_name("conv", tile, dtype, geglu=False),
        kernel="conv_sm90",
        source="conv_sm90.cu",
        constants=tile.constants(dtype, geglu=False),
        parameters=PARAMETERS,
        registers=REGISTERS,
        threads=THREADS,
        instructions=tile.instructions("4D"),
        archs=(ARCH,),
        suffix="a",
        overlaps=True,
    )
    for dtype, tiles in OF_CONVOLUTIONS.items()
    for tile in tiles
)

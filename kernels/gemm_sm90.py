"""`gemm` on sm_90a: persistent blocks, copies by TMA, products by wgmma.

The same operation as `gemm`, for float16 and bfloat16, without activation or with geglu. Proved on
the host by fibres (`sources/hopper_host.h`): arithmetic, descriptors, swizzles, the ring's barriers
in both orders; on the image: registers, no spill, the instructions. Its speed is not measured.
"""

from dataclasses import dataclass
from typing import Literal

from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.driver.tensor_map import TensorMap
from diffusion_rt.kernels.gemm import Product
from diffusion_rt.kernels.tactic import Encode, Operands
from diffusion_rt.kernels.tiles_sm90 import (
    ARCH,
    DEPTH,
    OF_PRODUCTS,
    REGISTERS,
    THREADS,
    Cut,
    Tile,
    cuts,
    suits,
)
from diffusion_rt.kernels.variant import Variant

ITEM = 2  # bytes of an element

PARAMETERS = (
    Parameter("first", "tensor_map"),  # [M, K] or [M, K1]
    Parameter("second", "tensor_map"),  # [M, K - K1]; the first again where there is one source
    Parameter("weight", "tensor_map"),  # [N, K]
    Parameter("bias", "pointer", alignment=16, nullable=True),  # [N]
    Parameter("vector", "pointer", alignment=16, nullable=True),  # [images, N]
    Parameter("residual", "pointer", alignment=16, nullable=True),  # [M, N], or N / 2
    Parameter("output", "pointer", alignment=16),  # [M, N], or N / 2; may be the residual
    Parameter("partial", "pointer", alignment=16, nullable=True),  # float32, Cut.partial_bytes
    Parameter("arrived", "pointer", alignment=4, nullable=True),  # [tiles] uint32
    Parameter("rows", "int32"),  # M
    Parameter("columns", "int32"),  # N
    Parameter("depth", "int32"),  # K
    Parameter("first_depth", "int32"),  # K1, or K
    Parameter("image_rows", "int32"),
    Parameter("vector_stride", "int32"),
    Parameter("residual_stride", "int32"),
    Parameter("output_stride", "int32"),
    Parameter("splits", "int32"),
    Parameter("blocks", "int32"),  # of the depth
    Parameter("split_blocks", "int32"),
)


@dataclass(frozen=True, slots=True)
class Sm90Product:
    """A product by one tile; a `Tactic`."""

    product: Product
    cut: Cut
    limits: Limits

    @property
    def name(self) -> str:
        """The tile and the splits."""
        return f"gemm sm90 {self.cut.name}"

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        geglu = self.product.epilogue.activation == "geglu"
        return variant_name("gemm", self.cut.tile, self.product.dtype, geglu)

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
        return self.cut.cycles(limits, geglu=self.product.epilogue.activation == "geglu")

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of PARAMETERS."""
        if encode is None:
            raise Misuse(f"{self.name} wants tensor maps and nothing makes them")
        product, has = self.product, self.product.epilogue
        first, last = widths(product)[0], widths(product)[-1]
        both = [self._map("first", operands.first, first, product.first_stride)]
        if product.first_depth < product.depth:
            both.append(self._map("second", operands.second, last, product.second_stride))
        tile = self.cut.tile
        weight = weight_map(product.dtype, operands.weight, product.columns, product.depth, tile)
        return (
            encode(both[0]),
            encode(both[-1]),
            encode(weight),
            operands.bias if has.bias else 0,
            operands.vector if has.vector else 0,
            operands.residual if has.residual else 0,
            operands.output,
            operands.partial,
            operands.arrived,
            product.rows,
            product.columns,
            product.depth,
            product.first_depth,
            product.image_rows,
            product.vector_stride,
            product.residual_stride,
            product.output_stride,
            self.cut.splits,
            self.cut.blocks,
            self.cut.split_blocks,
        )

    def _map(self, name: str, address: int, width: int, stride: int) -> TensorMap:
        return TensorMap(
            name=name,
            dtype=half_of(self.product.dtype),
            address=address,
            sizes=(width, self.product.rows),
            strides=(stride * ITEM,),
            box=(DEPTH, self.cut.tile.rows),
        )


def tactics(product: Product, limits: Limits) -> tuple[Sm90Product, ...]:
    """All cuts worth measuring, the likely fastest first; none where the kernel does not suit."""
    activation = product.epilogue.activation
    fits = suits(product.dtype, product.rows, product.columns, widths(product), limits)
    if not fits or activation not in ("none", "geglu"):
        return ()
    found = cuts(
        OF_PRODUCTS[product.dtype],
        lambda tile: (
            -(-product.rows // (tile.rows * tile.cluster)) * -(-product.columns // tile.columns)
        ),
        sum(-(-width // DEPTH) for width in widths(product)),
        limits,
        geglu=activation == "geglu",
    )
    return tuple(Sm90Product(product, cut, limits) for cut in found)


def widths(product: Product) -> tuple[int, ...]:
    """Columns of each source."""
    rest = product.depth - product.first_depth
    return (product.first_depth, rest) if rest else (product.first_depth,)


def weight_map(dtype: str, address: int, filters: int, depth: int, tile: Tile) -> TensorMap:
    """The map of a weight [N, K]: what one block reads for a tile."""
    return TensorMap(
        name="weight",
        dtype=half_of(dtype),
        address=address,
        sizes=(depth, filters),
        strides=(depth * ITEM,),
        box=(DEPTH, tile.columns // tile.cluster),
    )


def half_of(dtype: str) -> Literal["float16", "bfloat16"]:
    """The type of a tensor map."""
    return "bfloat16" if dtype == "bfloat16" else "float16"


def variant_name(kind: str, tile: Tile, dtype: str, geglu: bool) -> str:
    """A row's name in the catalogue, such as gemm_sm90_geglu_128x160.float16."""
    return f"{kind}_sm90{'_geglu' if geglu else ''}_{tile.name}.{dtype}"


VARIANTS = tuple(
    Variant(
        name=variant_name("gemm", tile, dtype, geglu),
        kernel="gemm_sm90",
        source="gemm_sm90.cu",
        constants=tile.constants(dtype, geglu),
        parameters=PARAMETERS,
        registers=REGISTERS,
        threads=THREADS,
        instructions=tile.instructions("2D"),
        archs=(ARCH,),
        suffix="a",
        overlaps=True,
    )
    for dtype, tiles in OF_PRODUCTS.items()
    for tile in tiles
    for geglu in (False, True)
    if tile.takes(geglu)
)

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
from diffusion_rt.kernels.tiles_sm90 import ARCH, DEPTH, ELEMENTS, REGISTERS, THREADS, TILES, Tile
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
    Parameter("rows", "int32"),  # M
    Parameter("columns", "int32"),  # N
    Parameter("depth", "int32"),  # K
    Parameter("first_depth", "int32"),  # K1, or K
    Parameter("image_rows", "int32"),
    Parameter("vector_stride", "int32"),
    Parameter("residual_stride", "int32"),
    Parameter("output_stride", "int32"),
)


@dataclass(frozen=True, slots=True)
class Sm90Product:
    """A product by one tile; a `Tactic`."""

    product: Product
    tile: Tile
    limits: Limits

    @property
    def name(self) -> str:
        """The tile."""
        return f"gemm sm90 {self.tile.name}"

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        return variant_name("gemm", self.tile, self.product.dtype, _geglu(self.product))

    @property
    def launch(self) -> Launch:
        """At most a block for each multiprocessor."""
        tiles = self.tile.count(self.product.rows, self.product.columns)
        return self.tile.launch(tiles, self.limits)

    @property
    def partial_bytes(self) -> int:
        """No scratch memory."""
        return 0

    @property
    def counters(self) -> int:
        """No counters."""
        return 0

    @property
    def cycles(self) -> float:
        """How long it should take."""
        product = self.product
        tiles = self.tile.count(product.rows, product.columns)
        depths = (product.first_depth, product.depth - product.first_depth)
        blocks = sum(-(-depth // DEPTH) for depth in depths)
        return self.tile.cycles(tiles, blocks, self.limits)

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of PARAMETERS."""
        if encode is None:
            raise Misuse(f"{self.name} wants tensor maps and nothing makes them")
        product, has = self.product, self.product.epilogue
        first = self._map("first", operands.first, product.first_depth, product.first_stride)
        second = first
        if product.first_depth < product.depth:
            width = product.depth - product.first_depth
            second = self._map("second", operands.second, width, product.second_stride)
        return (
            encode(first),
            encode(second),
            encode(
                weight_map(
                    product.dtype, operands.weight, product.columns, product.depth, self.tile
                )
            ),
            operands.bias if has.bias else 0,
            operands.vector if has.vector else 0,
            operands.residual if has.residual else 0,
            operands.output,
            product.rows,
            product.columns,
            product.depth,
            product.first_depth,
            product.image_rows,
            product.vector_stride,
            product.residual_stride,
            product.output_stride,
        )

    def _map(self, name: str, address: int, width: int, stride: int) -> TensorMap:
        return TensorMap(
            name=name,
            dtype=half_of(self.product.dtype),
            address=address,
            sizes=(width, self.product.rows),
            strides=(stride * ITEM,),
            box=(DEPTH, self.tile.rows),
        )


def tactics(product: Product, limits: Limits) -> tuple[Sm90Product, ...]:
    """All tiles worth measuring, the likely fastest first; none where the kernel does not suit."""
    if limits.arch != ARCH or product.dtype not in ELEMENTS:
        return ()
    if product.epilogue.activation not in ("none", "geglu"):
        return ()
    found = [Sm90Product(product, tile, limits) for tile in TILES if tile.takes(_geglu(product))]
    return tuple(sorted(found, key=lambda tactic: tactic.cycles))


def weight_map(dtype: str, address: int, filters: int, depth: int, tile: Tile) -> TensorMap:
    """The map of a weight [N, K] for a tile."""
    return TensorMap(
        name="weight",
        dtype=half_of(dtype),
        address=address,
        sizes=(depth, filters),
        strides=(depth * ITEM,),
        box=(DEPTH, tile.columns),
    )


def half_of(dtype: str) -> Literal["float16", "bfloat16"]:
    """The type of a tensor map."""
    return "bfloat16" if dtype == "bfloat16" else "float16"


def _geglu(product: Product) -> bool:
    return product.epilogue.activation == "geglu"


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
    )
    for dtype in ELEMENTS
    for tile in TILES
    for geglu in (False, True)
    if tile.takes(geglu)
)

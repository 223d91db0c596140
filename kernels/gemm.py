"""`gemm`: Y[M, N] = epilogue(A[M, K] · W[N, K]ᵀ), with float32 sums.

A may be two sources side by side, the first columns from one and the rest from the other: what
concatenation would write. Rows of A, Y and the residual may lie in wider buffers.
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
from diffusion_rt.kernels.tactic import Encode, Operands
from diffusion_rt.kernels.variant import Variant

VECTOR = 8  # elements of one load: every width and stride is a multiple

PARAMETERS = (
    Parameter("first", "pointer", alignment=16),  # [M, K] or [M, K1]
    Parameter("second", "pointer", alignment=16, nullable=True),  # [M, K - K1]
    Parameter("weight", "pointer", alignment=16),  # [N, K]
    Parameter("bias", "pointer", alignment=16, nullable=True),  # [N]
    Parameter("vector", "pointer", alignment=16, nullable=True),  # [images, N]
    Parameter("residual", "pointer", alignment=16, nullable=True),  # [M, N], or N / 2
    Parameter("output", "pointer", alignment=16),  # [M, N], or N / 2; may be the residual
    Parameter("partial", "pointer", alignment=16, nullable=True),  # [splits, M, N] float32
    Parameter("arrived", "pointer", alignment=4, nullable=True),  # [tiles] uint32
    Parameter("rows", "int32"),  # M
    Parameter("columns", "int32"),  # N
    Parameter("depth", "int32"),  # K
    Parameter("first_depth", "int32"),  # K1, or K
    Parameter("first_stride", "int32"),
    Parameter("second_stride", "int32"),
    Parameter("image_rows", "int32"),
    Parameter("vector_stride", "int32"),
    Parameter("residual_stride", "int32"),
    Parameter("output_stride", "int32"),
    Parameter("activation", "int32"),
    Parameter("split_depth", "int32"),  # of K, a multiple of what a block takes at once
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product's sizes; strides count elements from one row to the next.

    A stride of 0 stands for rows that follow one another. Raises Misuse, naming the number, where
    a width or stride is no multiple of 8.
    """

    dtype: str  # float16, bfloat16 or float32, of all arrays
    rows: int  # M
    columns: int  # N, rows of the weight
    depth: int  # K
    first_depth: int = 0  # columns of the first of two sources; 0 where there is one
    image_rows: int = 0  # rows of one image, for the epilogue's vector; 0 stands for M
    first_stride: int = 0
    second_stride: int = 0
    vector_stride: int = 0
    residual_stride: int = 0
    output_stride: int = 0
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.image_rows < 0:
            raise Misuse(f"a product of {self.rows} rows, {self.image_rows} of an image")
        wanted = {"columns": self.columns, "depth": self.depth}
        for name, number in wanted.items():
            if number < 1 or number % VECTOR:
                raise Misuse(f"{name}={number} of a product; a multiple of {VECTOR} is wanted")
        if self.first_depth % VECTOR or not 0 <= self.first_depth <= self.depth:
            raise Misuse(
                f"first_depth={self.first_depth} of a product of depth {self.depth}; "
                f"a multiple of {VECTOR} within it is wanted"
            )
        widths = {
            "first_stride": self.first_depth or self.depth,
            "second_stride": self.depth - self.first_depth,
            "vector_stride": self.columns,
            "residual_stride": self.output_columns,
            "output_stride": self.output_columns,
        }
        for name, width in widths.items():
            stride = getattr(self, name) or width
            if stride % VECTOR or stride < width:
                raise Misuse(
                    f"{name}={stride} of a product; a multiple of {VECTOR}, at least {width}, "
                    "is wanted"
                )
            object.__setattr__(self, name, stride)
        object.__setattr__(self, "image_rows", self.image_rows or self.rows)
        object.__setattr__(self, "first_depth", self.first_depth or self.depth)

    @property
    def output_columns(self) -> int:
        """Columns of the output: N, or half of it with geglu."""
        return self.epilogue.columns(self.columns)

    @property
    def flops(self) -> int:
        """2 M N K."""
        return 2 * self.rows * self.columns * self.depth


@dataclass(frozen=True, slots=True)
class TiledProduct:
    """The tactic of `gemm.cu`: a product in tiles, and its depth perhaps in splits."""

    product: Product
    cut: tiles.Cut

    @property
    def name(self) -> str:
        """The tile and the splits."""
        return f"gemm {self.cut.tile.name} {self.cut.splits}"

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        return f"gemm_{self.cut.tile.name}.{self.product.dtype}"

    @property
    def launch(self) -> Launch:
        """Grid, block and dynamic shared memory."""
        return self.cut.launch

    @property
    def partial_bytes(self) -> int:
        """Scratch memory for the sums of the splits, or 0."""
        return self.cut.partial_bytes(self.product.rows, self.product.columns)

    @property
    def counters(self) -> int:
        """One for each tile where there are splits."""
        return self.cut.counters

    def cycles(self, limits: Limits) -> float:
        """How long it takes on a chip, by the model of `tiles`."""
        of = self.product
        return tiles.cycles(self.cut, of.dtype, of.rows, of.columns, limits)

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of PARAMETERS."""
        product, has = self.product, self.product.epilogue
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
            product.rows,
            product.columns,
            product.depth,
            product.first_depth,
            product.first_stride,
            product.second_stride,
            product.image_rows,
            product.vector_stride,
            product.residual_stride,
            product.output_stride,
            has.number,
            self.cut.split_depth,
        )


def tactics(product: Product, limits: Limits) -> tuple[TiledProduct, ...]:
    """All cuts worth measuring on a chip; the first is the one to take before that was done."""
    sizes = (product.dtype, product.rows, product.columns, product.depth)
    found = tiles.cuts(tiles.OF_PRODUCTS[product.dtype], *sizes, product.epilogue, limits)
    return tuple(TiledProduct(product, made) for made in found)


VARIANTS = tuple(
    Variant(
        name=f"gemm_{tile.name}.{dtype}",
        kernel="gemm",
        source="gemm.cu",
        constants=(("ELEMENT", tiles.ELEMENTS[dtype][0]), *tile.constants),
        parameters=PARAMETERS,
        registers=tile.registers,
        overlaps=True,
        threads=tile.threads,
        instructions=tiles.instructions(dtype),
    )
    for dtype, made in tiles.OF_PRODUCTS.items()
    for tile in made
)


def reference(
    a: NDArray[Any],
    weight: NDArray[Any],
    *,
    bias: NDArray[Any] | None = None,
    vector: NDArray[Any] | None = None,
    activation: Activation = "none",
    residual: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The product of a [M, K] (two sources concatenated) and weight [N, K], in float64.

    bias [N], vector [images, N] for M / images rows each, residual [M, N] (N / 2 with geglu).
    """
    images = 1 if vector is None else len(vector)
    sums = a.astype(np.float64) @ weight.astype(np.float64).T
    shaped = None if residual is None else residual.reshape(images, -1, residual.shape[-1])
    result = epilogues.reference(
        sums.reshape(images, -1, sums.shape[-1]),
        bias=bias,
        vector=vector,
        activation=activation,
        residual=shaped,
    )
    return result.reshape(len(a), -1)

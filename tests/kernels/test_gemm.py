"""`gemm` against its reference, on the host: every tile and type, epilogue, source and split."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import gemm, tiles
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse, limits_of
from diffusion_rt.kernels.epilogue import ACTIVATIONS, Epilogue, interleaved
from diffusion_rt.kernels.gemm import Product, TiledProduct
from diffusion_rt.kernels.tactic import Operands
from support.kernel_bench import KernelBench
from support.products import plain_epilogue, plain_sums, read, rounded, storage, stored

Array = NDArray[Any]
VARIANTS = [(tile, dtype) for dtype, made in tiles.OF_PRODUCTS.items() for tile in made]
NAMES = [f"{tile.name}-{dtype}" for tile, dtype in VARIANTS]
SMALL = tiles.OF_PRODUCTS["float32"][0]
CHIP = limits_of(90)
TESTS = Path(__file__).resolve().parents[1]

BENCHES: dict[tuple[str, str], KernelBench] = {}


def bench_of(tile: tiles.Tile, dtype: str) -> KernelBench:
    """A variant on a device, compiled once."""
    key = tile.name, dtype
    if key not in BENCHES:
        BENCHES[key] = KernelBench([CATALOGUE[f"gemm_{tile.name}.{dtype}"]])
    return BENCHES[key]


def address(buffer: Any) -> int:
    """0 where there is none."""
    return 0 if buffer is None else int(buffer.address)


class Case:
    """Random arrays of a product, in buffers as wide as its strides."""

    def __init__(self, product: Product, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.product = product
        images = -(-product.rows // product.image_rows)

        def some(*shape: int) -> Array:
            return rounded(rng.normal(size=shape), product.dtype)

        has = product.epilogue
        self.a = some(product.rows, product.depth)
        self.weight = some(product.columns, product.depth) / 4
        self.bias = some(product.columns) if has.bias else None
        self.vector = some(images, product.columns) if has.vector else None
        self.residual = some(product.rows, product.output_columns) if has.residual else None

    def _epilogue(self) -> dict[str, Any]:
        """Named as the references have them; the vector of each row, as an image of its own."""
        vector = self.vector
        if vector is not None:
            vector = np.repeat(vector, self.product.image_rows, 0)[: self.product.rows]
        activation = self.product.epilogue.activation
        return {"bias": self.bias, "vector": vector, "activation": activation}

    @property
    def truth(self) -> Array:
        return gemm.reference(self.a, self.weight, residual=self.residual, **self._epilogue())

    @property
    def plain(self) -> Array:
        """The same in float32, rounded to the type at the end."""
        sums = plain_sums(self.a, self.weight)
        residual = self.residual
        if self.product.epilogue.vector:
            sums = sums[:, None]
            residual = None if residual is None else residual[:, None]
        else:
            sums = sums[None]
        result = plain_epilogue(sums, residual=residual, **self._epilogue())
        return rounded(result.reshape(self.product.rows, -1), self.product.dtype)

    def run(self, tile: tiles.Tile, splits: int = 1, *, in_place: bool = False) -> Array:
        """The kernel, twice: the second time its counters must be as at first."""
        product, bench = self.product, bench_of(tile, self.product.dtype)
        sizes = (product.dtype, product.rows, product.columns, product.depth)
        tactic = TiledProduct(product, tiles.cut(tile, splits, *sizes))
        kind = storage(product.dtype)

        def put(values: Array | None, stride: int) -> Any:
            if values is None:
                return None
            wide = np.full((len(values), stride), 0xFFFF if kind == "u2" else np.nan, kind)
            wide[:, : values.shape[1]] = stored(values, product.dtype)
            return bench.put(wide)

        two = product.first_depth < product.depth
        shape = (product.rows, product.output_stride)
        arrived = bench.put(np.zeros(max(tactic.counters, 1), "u4"))
        first = put(self.a[:, : product.first_depth], product.first_stride)
        second = put(self.a[:, product.first_depth :], product.second_stride) if two else None
        weight = put(self.weight, product.depth)
        bias = put(None if self.bias is None else self.bias[None], product.columns)
        vector = put(self.vector, product.vector_stride)
        for _ in range(2):
            residual = put(self.residual, product.residual_stride)
            output = residual if in_place else bench.poisoned(shape, kind)
            partial = bench.poisoned([max(tactic.partial_bytes, 16)], "u1")
            operands = Operands(
                first=first.address,
                second=address(second),
                weight=weight.address,
                bias=address(bias),
                vector=address(vector),
                residual=address(residual),
                output=output.address,
                partial=partial.address if tactic.counters else 0,
                arrived=arrived.address if tactic.counters else 0,
            )
            CHIP.check(tactic.launch, tactic.name)
            bench.run("gemm", tactic.launch, *tactic.arguments(operands))
            got = bench.get(output, shape, kind)
        assert not bench.get(arrived, [max(tactic.counters, 1)], "u4").any()
        beyond = read(got[:, product.output_columns :], product.dtype)
        assert np.isnan(beyond).all()  # Nothing is written beside the output.
        bench.clear()
        return read(got[:, : product.output_columns], product.dtype)

    def check(self, tile: tiles.Tile, splits: int = 1, *, in_place: bool = False) -> None:
        got, truth = self.run(tile, splits, in_place=in_place), self.truth
        assert np.abs(got - truth).max() <= 2 * np.abs(self.plain - truth).max()


@pytest.mark.parametrize(("tile", "dtype"), VARIANTS, ids=NAMES)
def test_every_variant_is_its_reference(
    tile: tiles.Tile, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the edges of a tile, and a depth of more blocks than the ring has, the last not full."""
    monkeypatch.setenv("HOST_CUDA_BANKS", "1")  # No two rows that are read at once share banks.
    sizes = {"rows": tile.rows + 3, "columns": tile.columns + 8, "depth": 168}
    Case(Product(dtype=dtype, **sizes, epilogue=Epilogue(bias=True))).check(tile)


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 8, 8), (2, 64, 40), (77, 24, 128), (65, 72, 96)]
)
def test_sizes(dtype: str, rows: int, columns: int, depth: int) -> None:
    Case(Product(dtype=dtype, rows=rows, columns=columns, depth=depth)).check(SMALL)


@pytest.mark.parametrize("rows", [600, 1030])
def test_more_rows_of_tiles_than_a_band(rows: int) -> None:
    """Bands of eight rows of tiles, the last of them not full."""
    Case(Product(dtype="float16", rows=rows, columns=136, depth=8)).check(SMALL)


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("splits", [1, 3])
def test_epilogues(dtype: str, activation: Any, splits: int) -> None:
    has = Epilogue(bias=True, vector=activation != "geglu", activation=activation, residual=True)
    sizes = {"rows": 30, "columns": 48, "depth": 200, "image_rows": 10}
    Case(Product(dtype=dtype, **sizes, epilogue=has)).check(SMALL, splits)


@pytest.mark.parametrize(("tile", "dtype"), VARIANTS, ids=NAMES)
def test_geglu_where_the_tile_takes_it(tile: tiles.Tile, dtype: str) -> None:
    has = Epilogue(bias=True, activation="geglu")
    assert tile.takes(has)
    Case(Product(dtype=dtype, rows=9, columns=tile.columns + 16, depth=40, epilogue=has)).check(
        tile
    )


def test_geglu_is_that_of_the_whole_weight() -> None:
    """Interleaved rows give what the two halves of a weight give."""
    rng = np.random.default_rng(4)
    a, weight, bias = rng.normal(size=(5, 8)), rng.normal(size=(64, 8)), rng.normal(size=64)
    got = gemm.reference(a, interleaved(weight), bias=interleaved(bias), activation="geglu")
    values, gates = np.split(gemm.reference(a, weight, bias=bias), 2, axis=1)
    erf = np.vectorize(math.erf)
    np.testing.assert_allclose(got, values * gates * (1 + erf(gates / 2**0.5)) / 2, atol=1e-14)


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
@pytest.mark.parametrize("splits", [1, 2])
def test_two_sources_and_wider_buffers(dtype: str, splits: int) -> None:
    product = Product(
        dtype=dtype,
        rows=70,
        columns=40,
        depth=136,
        first_depth=56,
        first_stride=64,
        second_stride=96,
        vector_stride=120,
        residual_stride=48,
        output_stride=56,
        image_rows=35,
        epilogue=Epilogue(vector=True, residual=True),
    )
    Case(product).check(SMALL, splits)


@pytest.mark.parametrize("splits", [1, 2])
def test_the_residual_may_be_the_output(splits: int) -> None:
    has = Epilogue(residual=True)
    product = Product(dtype="float16", rows=70, columns=72, depth=64, epilogue=has)
    case = Case(replace(product, output_stride=80, residual_stride=80))
    case.check(SMALL, splits, in_place=True)


def test_any_order_of_threads_and_blocks_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(Product(dtype="float16", rows=100, columns=136, depth=264))
    forward = case.run(SMALL, 3)
    monkeypatch.setenv("HOST_CUDA_ORDER", "reverse")
    np.testing.assert_array_equal(case.run(SMALL, 3), forward)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("splits", [1, 2])
def test_infinity_stays_in_its_row_and_column(dtype: str, splits: int) -> None:
    """A chunk past the end of a row is zero: it is not the beginning of the next row."""
    case = Case(Product(dtype=dtype, rows=9, columns=16, depth=72))
    case.a[4], case.weight[6] = np.inf, np.inf
    got, finite = case.run(SMALL, splits), np.ones((9, 16), bool)
    finite[4], finite[:, 6] = False, False
    np.testing.assert_array_equal(np.isfinite(got), finite)


def test_nothing_is_read_or_written_past_the_end() -> None:
    """Products and convolutions over arrays that end where memory does."""
    path = [str(folder) for folder in (TESTS.parent / "src", TESTS)]
    done = subprocess.run(
        [sys.executable, "-P", str(TESTS / "support" / "past_the_end.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_row_does_not_depend_on_the_others() -> None:
    case = Case(Product(dtype="float16", rows=130, columns=64, depth=72))
    together = case.run(SMALL)
    case.product, case.a = replace(case.product, rows=1, image_rows=1), case.a[129:]
    np.testing.assert_array_equal(case.run(SMALL), together[129:])


@given(
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    rows=st.integers(1, 140),
    columns=st.integers(1, 12).map(lambda n: n * 8),
    depth=st.integers(1, 20).map(lambda n: n * 8),
    splits=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_size(dtype: str, rows: int, columns: int, depth: int, splits: int, seed: int) -> None:
    has = Epilogue(bias=bool(seed % 2), residual=bool(seed % 3))
    product = Product(dtype=dtype, rows=rows, columns=columns, depth=depth, epilogue=has)
    Case(product, seed).check(SMALL, splits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 0}, "0 rows"),
        ({"columns": 12}, "columns=12"),
        ({"depth": 7}, "depth=7"),
        ({"first_depth": 72}, "first_depth=72"),
        ({"first_depth": 12}, "first_depth=12"),
        ({"first_stride": 56}, "first_stride=56"),
        ({"output_stride": 68}, "output_stride=68"),
        ({"epilogue": Epilogue(activation="geglu"), "columns": 40}, "geglu of 40 columns"),
    ],
)
def test_sizes_it_does_not_take_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Misuse, match=said):
        Product(**{"dtype": "float16", "rows": 4, "columns": 32, "depth": 64, **change})


@pytest.mark.parametrize("wrong", [{"activation": "tanh"}, {"activation": "geglu", "vector": True}])
def test_an_epilogue_that_there_is_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(Misuse, match=r"tanh|no vector"):
        Epilogue(**wrong)

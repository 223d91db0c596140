"""The rule that cuts products into tiles, and where tiles lie in shared memory."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.kernels import conv, gemm, tiles
from diffusion_rt.kernels.driver import limits_of
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.gemm import Product
from diffusion_rt.kernels.variant import ARCHS

ALL = {
    tile.name: tile
    for made in (*tiles.OF_PRODUCTS.values(), *tiles.OF_CONVOLUTIONS.values())
    for tile in made
}
H200 = replace(limits_of(90), multiprocessors=132)


@pytest.mark.parametrize("tile", ALL.values(), ids=ALL)
def test_a_tile_fits_every_chip(tile: tiles.Tile) -> None:
    for arch in ARCHS:
        assert tile.resident(limits_of(arch)) >= 1
    assert tile.rows % (tile.threads // 4) == 0
    # The strips that the sums leave by lie where the ring was.
    strip = 16 * (tile.columns // tile.warps_across + 8) * 4
    assert tile.threads // 32 * strip <= tile.shared_bytes


@given(
    dtype=st.sampled_from(sorted(tiles.ELEMENTS)),
    rows=st.integers(1, 40000),
    columns=st.integers(1, 1300).map(lambda n: n * 8),
    depth=st.integers(1, 1500).map(lambda n: n * 8),
    arch=st.sampled_from(ARCHS),
    processors=st.integers(1, 200),
)
def test_a_cut_covers_everything(
    dtype: str, rows: int, columns: int, depth: int, arch: int, processors: int
) -> None:
    limits = replace(limits_of(arch), multiprocessors=processors)
    product = Product(dtype=dtype, rows=rows, columns=columns, depth=depth)
    tactics = gemm.tactics(product, limits)
    assert len({tactic.name for tactic in tactics}) == len(tactics) > 0
    for tactic in tactics:
        cut, tile = tactic.cut, tactic.cut.tile
        assert cut.launch.grid[0] == -(-rows // tile.rows) * -(-columns // tile.columns)
        assert (cut.splits - 1) * cut.split_depth < depth <= cut.splits * cut.split_depth
        assert cut.split_depth % tiles.depth_at_once(dtype) == 0
        limits.check(cut.launch, tactic.name)
        assert (cut.counters, tactic.partial_bytes) == (
            (cut.launch.grid[0], cut.splits * rows * columns * 4) if cut.splits > 1 else (0, 0)
        )
    costs = [tiles.cycles(tactic.cut, dtype, rows, columns, limits) for tactic in tactics]
    assert all(a <= b for a, b in pairwise(costs))


def fill(product: Product) -> float:
    """Work of a product, of that which full waves of its first tactic would hold on 132 SMs."""
    cut = gemm.tactics(product, H200)[0].cut
    blocks = cut.launch.grid[0] * cut.splits
    wave = 132 * (cut.tile.resident(H200) if blocks > 132 else 1)
    useful = product.rows * product.columns / (cut.tile.rows * cut.tile.columns) * cut.splits
    return useful / (-(-blocks // wave) * wave)


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "geglu"),
    [
        (2048, 10240, 1280, True),
        (2048, 1280, 5120, False),
        (2048, 1280, 1280, False),
        (2048, 3840, 1280, False),
        (8192, 640, 2560, False),
        (8192, 5120, 640, True),
    ],
)
def test_the_products_of_sdxl_fill_132_multiprocessors(
    rows: int, columns: int, depth: int, geglu: bool
) -> None:
    has = Epilogue(bias=True, activation="geglu" if geglu else "none")
    product = Product(dtype="float16", rows=rows, columns=columns, depth=depth, epilogue=has)
    assert fill(product) >= 0.9


def test_few_rows_share_out_their_depth() -> None:
    """A text encoder's 77 rows give 20 tiles: their depth occupies the other multiprocessors."""
    product = Product(dtype="float16", rows=77, columns=1280, depth=5120)
    cut = gemm.tactics(product, H200)[0].cut
    assert cut.splits > 1
    assert cut.launch.grid[0] * cut.splits >= 66
    many = Product(dtype="float16", rows=16384, columns=1280, depth=5120)
    assert all(tactic.cut.splits == 1 for tactic in gemm.tactics(many, H200))


def test_a_picture_of_three_channels_takes_the_narrow_tile() -> None:
    for dtype in tiles.ELEMENTS:
        last = conv.Convolution(
            dtype=dtype,
            images=1,
            height=256,
            width=256,
            channels=128,
            filters=8,
            kernel=(3, 3),
            padding=(1, 1, 1, 1),
        )
        assert conv.tactics(last, H200)[0].cut.tile.columns == 16


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
def test_a_tile_of_a_doubled_convolution_has_pixels_of_one_parity(dtype: str) -> None:
    of = conv.Convolution(
        dtype=dtype,
        images=3,
        height=9,
        width=7,
        channels=64,
        filters=200,
        kernel=(3, 3),
        padding=(1, 1, 1, 1),
        enlarged=(18, 14),
    )
    for tactic in conv.tactics(of, H200):
        tile, grid = tactic.cut.tile, tactic.cut.launch.grid
        assert grid[0] == 4 * -(-3 * 9 * 7 // tile.rows) * -(-200 // tile.columns)

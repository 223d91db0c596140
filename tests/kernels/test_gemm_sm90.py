"""`gemm` on sm_90a against its reference, on the host: every tile, epilogue and source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import gemm, gemm_sm90
from diffusion_rt.kernels.catalogue import CATALOGUE, SOURCES
from diffusion_rt.kernels.driver import DeviceLost, Misuse, limits_of
from diffusion_rt.kernels.epilogue import Epilogue, interleaved
from diffusion_rt.kernels.gemm import Product
from diffusion_rt.kernels.gemm_sm90 import Sm90Product, tactics
from diffusion_rt.kernels.tactic import Operands
from diffusion_rt.kernels.tiles_sm90 import DEPTH, OF_PRODUCTS, Cut, Tile
from support.kernel_bench import KernelBench
from support.products import plain_epilogue, plain_sums, read, rounded, storage, stored

Array = NDArray[Any]
CHIP = limits_of(90)
ONE = replace(CHIP, multiprocessors=2)  # so that a cluster goes on from tile to tile
TILES = OF_PRODUCTS["float16"]
PLAIN = [tile for tile in TILES if tile.takes(False)]
GATED = [tile for tile in TILES if tile.takes(True)]
SMALL = Tile(64, 160, 1)
BENCHES: dict[str, KernelBench] = {}


def bench_of(variant: str) -> KernelBench:
    """A variant on a device, compiled once."""
    if variant not in BENCHES:
        BENCHES[variant] = KernelBench([CATALOGUE[variant]])
    return BENCHES[variant]


def cut_of(product: Product, tile: Tile, splits: int = 1) -> Cut:
    """That tile, and as many splits as the depth gives of those."""
    rows = tile.rows * tile.cluster
    tiles = -(-product.rows // rows) * -(-product.columns // tile.columns)
    blocks = sum(-(-width // DEPTH) for width in gemm_sm90.widths(product))
    return Cut(tile, tiles, blocks, -(-blocks // -(-blocks // splits)))


def check(
    product: Product, tile: Tile, *, splits: int = 1, in_place: bool = False, seed: int = 0
) -> None:
    """A product of random arrays is its reference, and nothing is written beside the output.

    It runs twice: the second time the counters of splits must be as at first.
    """
    rng = np.random.default_rng(seed)
    dtype, kind, has = product.dtype, storage(product.dtype), product.epilogue
    images = -(-product.rows // product.image_rows)
    tactic = Sm90Product(product, cut_of(product, tile, splits), ONE)
    bench = bench_of(tactic.variant)

    def some(*shape: int) -> Array:
        return rounded(rng.normal(size=shape), dtype)

    a, weight = some(product.rows, product.depth), some(product.columns, product.depth) / 4
    bias = some(product.columns) if has.bias else None
    vector = some(images, product.columns) if has.vector else None
    residual = some(product.rows, product.output_columns) if has.residual else None

    def put(values: Array | None, stride: int) -> Any:
        if values is None:
            return None
        wide = np.full((len(values), stride), 0xFFFF if kind == "u2" else np.nan, kind)
        wide[:, : values.shape[1]] = stored(values, dtype)
        return bench.put(wide)

    def address(buffer: Any) -> int:
        return 0 if buffer is None else int(buffer.address)

    shape = (product.rows, product.output_stride)
    source = put(a[:, : product.first_depth], product.first_stride)
    second = None
    if product.first_depth < product.depth:
        second = put(a[:, product.first_depth :], product.second_stride)
    filters = put(weight, product.depth)
    biases = put(None if bias is None else bias[None], product.columns)
    vectors = put(vector, product.vector_stride)
    arrived = bench.put(np.zeros(max(tactic.counters, 1), "u4"))
    CHIP.check(tactic.launch, tactic.name)
    for _ in range(2):
        behind = put(residual, product.residual_stride)
        output = behind if in_place else bench.poisoned(shape, kind)
        partial = bench.poisoned([max(tactic.partial_bytes, 16)], "u1")
        operands = Operands(
            first=address(source),
            second=address(second),
            weight=address(filters),
            bias=address(biases),
            vector=address(vectors),
            residual=address(behind),
            output=address(output),
            partial=address(partial) if tactic.counters else 0,
            arrived=address(arrived) if tactic.counters else 0,
        )
        arguments = tactic.arguments(operands, bench.device.tensor_map)
        bench.run("gemm_sm90", tactic.launch, *arguments)
        got = read(bench.get(output, shape, kind), dtype)
    assert not bench.get(arrived, [max(tactic.counters, 1)], "u4").any()
    bench.clear()
    assert np.isnan(got[:, product.output_columns :]).all()
    got = got[:, : product.output_columns]

    each = None if vector is None else np.repeat(vector, product.image_rows, 0)[: product.rows]
    named: dict[str, Any] = {"bias": bias, "vector": each, "activation": has.activation}
    truth = gemm.reference(a, weight, residual=residual, **named)
    plain = plain_epilogue(
        plain_sums(a, weight)[:, None],
        residual=None if residual is None else residual[:, None],
        **{**named, "vector": each},
    )
    error = np.abs(rounded(plain.reshape(truth.shape), dtype) - truth).max()
    assert np.abs(got - truth).max() <= 2 * error


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Copies at once and products late, or the other way round."""
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)
    return str(request.param)


@pytest.mark.parametrize("tile", PLAIN, ids=lambda tile: tile.name)
def test_every_tile_is_its_reference(tile: Tile, order: str) -> None:
    """Past a tile's edges, four tiles of one block, its ring used more than once.

    Of a cluster's last two tiles one is empty.
    """
    rows = tile.rows * tile.cluster + 3
    sizes = {"rows": rows, "columns": tile.columns + 8, "depth": 136}
    epilogue = Epilogue(bias=True, residual=True)
    check(Product(dtype="float16", **sizes, epilogue=epilogue), tile)


@pytest.mark.parametrize(
    "epilogue",
    [
        Epilogue(),
        Epilogue(bias=True),
        Epilogue(residual=True),
        Epilogue(bias=True, vector=True),
        Epilogue(bias=True, vector=True, residual=True),
    ],
    ids=str,
)
def test_epilogues(epilogue: Epilogue, order: str) -> None:
    """With an image that ends within a thread's two rows; strides wider than the rows."""
    product = Product(
        dtype="float16",
        rows=77,
        columns=168,
        depth=72,
        image_rows=13,
        first_stride=80,
        vector_stride=176,
        residual_stride=184,
        output_stride=192,
        epilogue=epilogue,
    )
    check(product, SMALL)


@pytest.mark.parametrize("tile", GATED, ids=lambda tile: tile.name)
@pytest.mark.parametrize("residual", [False, True])
def test_geglu(tile: Tile, residual: bool) -> None:
    epilogue = Epilogue(bias=True, activation="geglu", residual=residual)
    sizes = {"rows": tile.rows + 1, "columns": tile.columns + 16, "depth": 40}
    check(Product(dtype="float16", **sizes, epilogue=epilogue), tile)


@pytest.mark.parametrize(("columns", "depth"), [(160, 72), (336, 200), (640, 72), (336, 808)])
def test_warpgroups_take_turns(columns: int, depth: int, order: str) -> None:
    """One, three and four tiles of a cluster; twice round the ring, parities are as at first."""
    tile, epilogue = Tile(128, 160, cluster=2, apart=True), Epilogue(bias=True, activation="geglu")
    product = Product(dtype="float16", rows=130, columns=columns, depth=depth, epilogue=epilogue)
    check(product, tile)
    check(product, tile, splits=2)


def test_a_weight_for_geglu_is_interleaved_as_the_kernel_wants_it() -> None:
    """Rows of values and of gates in turn, eight by eight: what `interleaved` writes."""
    weight = np.arange(64, dtype=np.float64)[:, None]
    assert interleaved(weight)[:24, 0].tolist() == [
        *range(8),
        *range(32, 40),
        *range(8, 16),
    ]


@pytest.mark.parametrize(("first", "second"), [(72, 40), (64, 64), (8, 136), (136, 8)])
def test_two_sources_lie_side_by_side(first: int, second: int, order: str) -> None:
    """The last block of each source ends in zeros, wherever its width ends."""
    product = Product(
        dtype="float16",
        rows=70,
        columns=48,
        depth=first + second,
        first_depth=first,
        first_stride=first + 8,
        second_stride=second + 16,
    )
    check(product, SMALL)


@pytest.mark.parametrize("splits", [2, 3, 5])
def test_splits_of_the_depth_are_added_once(splits: int, order: str) -> None:
    """By the last of a tile, whichever that is; the first of them has most of the depth."""
    epilogue = Epilogue(bias=True, residual=True)
    product = Product(
        dtype="float16",
        rows=70,
        columns=168,
        depth=328,
        first_depth=104,
        epilogue=epilogue,
    )
    check(product, SMALL, splits=splits)
    check(product, SMALL, splits=splits, in_place=True)


def test_splits_of_two_strips_and_of_geglu(order: str) -> None:
    plain = Product(dtype="float16", rows=130, columns=96, depth=136)
    check(plain, Tile(256, 80), splits=2)
    epilogue = Epilogue(bias=True, activation="geglu")
    check(replace(plain, epilogue=epilogue, output_stride=0), Tile(128, 128), splits=3)


def test_splits_give_the_same_bits_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come last add in the order of the depth all the same."""
    product = Product(dtype="float16", rows=64, columns=160, depth=320)
    tactic = Sm90Product(product, cut_of(product, SMALL, 5), replace(CHIP, multiprocessors=5))
    bench, rng = bench_of(tactic.variant), np.random.default_rng(3)
    first, weight = (rng.normal(size=(n, 320)).astype("f2") for n in (64, 160))
    results = []
    for way in ("forward", "reverse"):
        monkeypatch.setenv("HOST_CUDA_ORDER", way)
        output = bench.poisoned((64, 160), "f2")
        operands = Operands(
            first=bench.put(first).address,
            weight=bench.put(weight).address,
            output=output.address,
            partial=bench.poisoned([tactic.partial_bytes], "u1").address,
            arrived=bench.put(np.zeros(tactic.counters, "u4")).address,
        )
        arguments = tactic.arguments(operands, bench.device.tensor_map)
        bench.run("gemm_sm90", tactic.launch, *arguments)
        results.append(bench.get(output, (64, 160), "u2"))
    np.testing.assert_array_equal(results[0], results[1])


def test_bfloat16(order: str) -> None:
    epilogue = Epilogue(bias=True, residual=True)
    sizes = {"rows": 131, "columns": 136, "depth": 72}
    check(Product(dtype="bfloat16", **sizes, epilogue=epilogue), Tile(128, 128))


def test_the_residual_may_lie_where_the_output_does() -> None:
    epilogue = Epilogue(bias=True, residual=True)
    product = Product(dtype="float16", rows=65, columns=168, depth=64, epilogue=epilogue)
    check(product, SMALL, in_place=True)


@given(
    rows=st.integers(1, 140),
    columns=st.integers(1, 45),
    depth=st.integers(1, 40),
    first=st.integers(0, 39),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_any_size(rows: int, columns: int, depth: int, first: int, seed: int) -> None:
    product = Product(
        dtype="float16",
        rows=rows,
        columns=8 * columns,
        depth=8 * depth,
        first_depth=8 * (first % depth),
        epilogue=Epilogue(bias=True),
    )
    check(product, SMALL, seed=seed)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        # Waiting for the other parity; a stage given back while products still read it; fewer
        # bytes announced; rows that lie closer; pairs that are not swapped.
        ("product_sm90.h", "ring.parity ^ 1);", "ring.parity);"),
        ("product_sm90.h", "wgmma_wait<1>();", "wgmma_wait<2>();"),
        (
            "product_sm90.h",
            "barrier_expect(full + ring.stage, kStageBytes)",
            "barrier_expect(full + ring.stage, kStageBytes / 2)",
        ),
        # In a cluster: the other block is not told, or told too early that this one is there.
        ("product_sm90.h", "arrive_at(empty, lane)", "arrive_at(empty, blockIdx.x % CLUSTER)"),
        ("product_sm90.h", "cluster_barrier();  // Nobody", "__syncthreads();  // Nobody"),
        ("product_sm90.h", "kOwnerWarps * CLUSTER", "kOwnerWarps"),
        # Apart: the second begins when the ring is not there yet; a stage too few is passed over.
        ("product_sm90.h", "if (APART) group_barrier(own_turn, kConsumers);", ""),
        ("product_sm90.h", "ring.skip(piece.end", "ring.skip(APART + piece.end"),
        ("hopper.h", "Descriptor(1024 >> 4)", "Descriptor(512 >> 4)"),
        ("pairs.h", "odd ? other[i] : own[i]", "own[i]"),
    ],
)
def test_a_planted_mistake_shows(
    file: str,
    right: str,
    wrong: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for source in SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    apart = "APART" in right + wrong
    epilogue = Epilogue(activation="geglu" if apart else "none")
    columns = 336 if apart else 136
    product = Product(dtype="float16", rows=130, columns=columns, depth=680, epilogue=epilogue)
    in_cluster = any(word in right for word in ("CLUSTER", "Nobody", "arrive_at"))
    tile = Tile(128, 160, cluster=2, apart=apart) if in_cluster or apart else Tile(128, 128)
    variant = Sm90Product(product, cut_of(product, tile), ONE).variant
    planted = replace(CATALOGUE[variant], source=str(tmp_path / "gemm_sm90.cu"))
    monkeypatch.setattr("diffusion_rt.kernels.compile._INCLUDE", f"-I{tmp_path}")
    found = []
    for way in ("forward", "reverse"):
        monkeypatch.setenv("HOST_CUDA_ORDER", way)
        monkeypatch.setitem(BENCHES, variant, KernelBench([planted]))
        try:
            check(product, tile)
        except (AssertionError, DeviceLost) as error:
            found.append(error)
    assert found


def test_only_what_suits_is_offered() -> None:
    product = Product(dtype="float16", rows=2048, columns=1280, depth=1280)
    assert tactics(product, CHIP)
    assert tactics(product, limits_of(100)) == ()
    assert tactics(replace(product, dtype="float32"), CHIP) == ()
    assert tactics(replace(product, rows=2), CHIP) == ()
    assert tactics(Product(dtype="float16", rows=2048, columns=8, depth=1280), CHIP) == ()
    assert tactics(Product(dtype="float16", rows=2048, columns=320, depth=8), CHIP) == ()
    assert tactics(replace(product, epilogue=Epilogue(activation="silu")), CHIP) == ()
    with pytest.raises(Misuse, match="wants tensor maps and nothing makes them"):
        tactics(product, CHIP)[0].arguments(Operands(first=16, weight=16, output=16))


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "activation", "best"),
    [
        (2048, 1280, 1280, "none", "2x128x160 1"),
        (2048, 1280, 5120, "none", "2x128x160 1"),
        (2048, 10240, 1280, "geglu", "2x128x160_turns 1"),
        (8192, 5120, 640, "geglu", "2x128x160_turns 1"),
        (8192, 640, 2560, "none", "2x256x160 1"),
    ],
)
def test_the_first_choice_fills_the_chip(
    rows: int, columns: int, depth: int, activation: Any, best: str
) -> None:
    """SDXL's shapes on 132 multiprocessors: 128 tiles of 128 x 160 where 2,048 x 1,280 is made."""
    epilogue = Epilogue(activation=activation)
    product = Product(dtype="float16", rows=rows, columns=columns, depth=depth, epilogue=epilogue)
    assert tactics(product, CHIP)[0].cut.name == best


def test_a_small_product_is_split() -> None:
    """512 x 512 pixels without guidance: 8 tiles of 128 x 160 would leave 124 of 132 idle."""
    best = tactics(Product(dtype="float16", rows=256, columns=1280, depth=5120), CHIP)[0]
    assert best.cut.splits > 1
    assert best.launch.grid[0] > 60


@given(
    tile=st.sampled_from(TILES),
    down=st.integers(1, 40),
    across=st.integers(1, 20),
    blocks=st.integers(1, 50),
    splits=st.integers(1, 8),
    grid=st.integers(1, 200),
)
def test_pieces_cover_everything_once(
    tile: Tile, down: int, across: int, blocks: int, splits: int, grid: int
) -> None:
    """What `Tiles::find` of product_sm90.h does, for all pieces of all blocks."""
    side = tile.cluster
    pairs = -(-down // side)
    cut = Cut(tile, pairs * across, blocks, -(-blocks // -(-blocks // splits)))
    band_rows, seen = 16 // side, set()
    each = -(-blocks // cut.splits)
    for block in range(grid * side):
        for index in range(block // side, cut.tiles * cut.splits, grid):
            number, split = divmod(index, cut.splits)
            band, within = divmod(number, band_rows * across)
            rows = min(band_rows, pairs - band * band_rows)
            begin = split * each
            end = min(blocks, begin + each)
            assert begin < end
            row = (band * band_rows + within % rows) * side + block % side
            seen.add((row, within // rows, begin, end))
    assert len(seen) == cut.tiles * side * cut.splits
    assert sum(end - begin for *_, begin, end in seen) == cut.tiles * side * blocks
    assert max(seen)[:2] == (pairs * side - 1, across - 1)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_fits_the_chip(tile: Tile) -> None:
    assert tile.shared_bytes <= CHIP.shared_bytes
    assert tile.stages >= 4
    # The launch alone says how large clusters are: the image does not.
    launch = Cut(tile, 3, 8, 1).launch(CHIP)
    assert launch.cluster == ((2, 1, 1) if tile.cluster == 2 else None)
    assert launch.grid == (3 * tile.cluster, 1, 1)

"""`conv` on sm_90a against its reference, on the host: boxes of pixels, padding, two sources."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import conv
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.conv import Convolution
from diffusion_rt.kernels.conv_sm90 import Sm90Convolution, boxes, tactics
from diffusion_rt.kernels.driver import limits_of
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.gemm_sm90 import Sm90Product
from diffusion_rt.kernels.tactic import Operands
from diffusion_rt.kernels.tiles_sm90 import DEPTH, OF_CONVOLUTIONS, Cut, Tile
from support.kernel_bench import KernelBench
from support.products import (
    plain_doubled,
    plain_epilogue,
    plain_sums,
    read,
    rounded,
    storage,
    stored,
    windows,
)

Array = NDArray[Any]
CHIP = limits_of(90)
ONE = replace(CHIP, multiprocessors=2)  # so that a cluster goes on from tile to tile
TILES = OF_CONVOLUTIONS["float16"]
SMALL = Tile(64, 160, 1)
BENCHES: dict[str, KernelBench] = {}


def cut_of(of: Convolution, tile: Tile, splits: int = 1) -> Cut:
    """That tile, and as many splits as the depth gives of those."""
    widths = (of.first_channels, of.channels - of.first_channels)
    blocks = of.taps[0] * of.taps[1] * sum(-(-width // DEPTH) for width in widths)
    down = of.parts * -(-of.images * boxes(of, tile).count // tile.cluster)
    tiles = down * -(-of.filters // tile.columns)
    return Cut(tile, tiles, blocks, -(-blocks // -(-blocks // splits)))


def plain(x: Array, weight: Array, of: Convolution) -> Array:
    """The sums of each pixel of the output in float32."""
    if of.doubled:
        return plain_doubled(x, weight)
    top, left, bottom, right = of.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return plain_sums(
        windows(padded, of.kernel).reshape(of.rows, -1), weight.reshape(of.filters, -1)
    )


def check(of: Convolution, tile: Tile, *, splits: int = 1, seed: int = 0) -> None:
    """A convolution of random arrays is its reference; nothing is written beside the output."""
    rng = np.random.default_rng(seed)
    kind, has = storage(of.dtype), of.epilogue
    tactic = Sm90Convolution(of, cut_of(of, tile, splits), ONE)
    if tactic.variant not in BENCHES:
        BENCHES[tactic.variant] = KernelBench([CATALOGUE[tactic.variant]])
    bench = BENCHES[tactic.variant]

    def some(*shape: int) -> Array:
        return rounded(rng.normal(size=shape), of.dtype)

    def put(values: Array | None, stride: int) -> int:
        if values is None:
            return 0
        flat = values.reshape(-1, values.shape[-1])
        wide = np.full((len(flat), stride), 0xFFFF if kind == "u2" else np.nan, kind)
        wide[:, : flat.shape[1]] = stored(flat, of.dtype)
        return int(bench.put(wide).address)

    x = some(of.images, of.height, of.width, of.channels)
    weight = some(*of.weight_shape) / 8
    bias = some(of.filters) if has.bias else None
    vector = some(of.images, of.filters) if has.vector else None
    residual = some(of.images, *of.output_size, of.filters) if has.residual else None
    shape = (of.rows, of.output_stride)
    output = bench.poisoned(shape, kind)
    arrived = bench.put(np.zeros(max(tactic.counters, 1), "u4"))
    rest = x[..., of.first_channels :]
    operands = Operands(
        first=put(x[..., : of.first_channels], of.first_stride),
        second=put(rest if rest.size else None, of.second_stride),
        weight=put(weight.reshape(of.filters, -1), of.parts * of.depth),
        bias=put(bias, of.filters),
        vector=put(vector, of.vector_stride),
        residual=put(residual, of.residual_stride),
        output=output.address,
        partial=bench.poisoned([max(tactic.partial_bytes, 16)], "u1").address,
        arrived=arrived.address,
    )
    CHIP.check(tactic.launch, tactic.name)
    arguments = tactic.arguments(operands, bench.device.tensor_map)
    bench.run("conv_sm90", tactic.launch, *arguments)
    got = read(bench.get(output, shape, kind), of.dtype)
    assert not bench.get(arrived, [max(tactic.counters, 1)], "u4").any()
    bench.clear()
    assert np.isnan(got[:, of.filters :]).all()

    named: dict[str, Any] = {"bias": bias, "vector": vector, "activation": "none"}
    truth = conv.reference(
        x, weight, padding=of.padding, enlarged=of.enlarged, residual=residual, **named
    )
    pixels = (of.images, -1, of.filters)
    sums = plain(x, weight, of).reshape(pixels)
    behind = None if residual is None else residual.reshape(pixels)
    close = rounded(plain_epilogue(sums, residual=behind, **named), of.dtype)
    error = np.abs(close.reshape(truth.shape) - truth).max()
    assert np.abs(got[:, : of.filters].reshape(truth.shape) - truth).max() <= 2 * error


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies at once and products late, or the other way round."""
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)


def three(**changes: Any) -> Convolution:
    """A 3x3 convolution with as many pixels as before, of two images."""
    sizes: dict[str, Any] = {
        "dtype": "float16",
        "images": 2,
        "height": 5,
        "width": 9,
        "channels": 40,
        "filters": 72,
        "kernel": (3, 3),
        "padding": (1, 1, 1, 1),
        "epilogue": Epilogue(bias=True),
    }
    return Convolution(**{**sizes, **changes})


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_tile_is_its_reference(tile: Tile, order: None) -> None:
    """A box that hangs over the image's edges, columns that hang over the tile's."""
    check(three(filters=tile.columns + 8, height=tile.rows // 16 + 1, width=17), tile)


def test_a_cluster_whose_last_tile_lies_behind_the_last_image(order: None) -> None:
    check(three(images=3, height=8, width=16), Tile(128, 160, cluster=2))


def test_all_of_an_epilogue_in_wider_buffers(order: None) -> None:
    """As in a resnet: the projection of the timestep for each image, and the skip."""
    check(
        three(
            first_stride=48,
            vector_stride=80,
            residual_stride=88,
            output_stride=96,
            epilogue=Epilogue(bias=True, vector=True, residual=True),
        ),
        SMALL,
    )


@pytest.mark.parametrize(("channels", "first"), [(136, 72), (128, 64), (24, 16)])
def test_two_sources_lie_side_by_side(channels: int, first: int, order: None) -> None:
    changes = {"first_stride": first + 8, "second_stride": channels - first + 16}
    check(three(channels=channels, first_channels=first, **changes), SMALL)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (8, 8), (1, 1), (3, 20)])
def test_a_source_enlarged_while_it_is_read(height: int, width: int, order: None) -> None:
    enlarged = (2 * height, 2 * width)
    check(three(images=1, height=height, width=width, enlarged=enlarged), SMALL)


def test_an_enlarged_source_in_two_parts_with_all_of_an_epilogue() -> None:
    has = Epilogue(bias=True, vector=True, residual=True)
    sizes = {"height": 4, "width": 5, "enlarged": (8, 10)}
    check(three(**sizes, channels=104, first_channels=32, epilogue=has), SMALL, splits=3)


@pytest.mark.parametrize("images", [1, 3])
def test_a_cluster_has_pixels_of_one_parity(images: int, order: None) -> None:
    """Its blocks share the weight: behind an odd number of boxes one has nothing to do."""
    sizes = {"images": images, "height": 8, "width": 16, "enlarged": (16, 32)}
    of, tile = three(**sizes, channels=16), Tile(128, 160, cluster=2)
    assert images * boxes(of, tile).count % 2 == 1
    check(of, tile)


def test_splits_of_the_depth(order: None) -> None:
    """Filters for both warpgroups, which share a tile's columns."""
    epilogue = Epilogue(bias=True, residual=True)
    check(three(channels=72, filters=168, epilogue=epilogue), SMALL, splits=4)


def test_bfloat16() -> None:
    check(three(dtype="bfloat16", height=9, width=15, filters=136), Tile(128, 128))


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 40),
    channels=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_any_size(
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    padding: tuple[int, int, int, int],
    seed: int,
) -> None:
    height, width = max(height, kernel[0]), max(width, kernel[1])
    of = three(
        images=1,
        height=height,
        width=width,
        channels=8 * channels,
        kernel=kernel,
        padding=padding,
    )
    check(of, SMALL, seed=seed)


@given(st.sampled_from(TILES), st.integers(1, 200), st.integers(1, 200), st.sampled_from([None, 2]))
def test_boxes_cover_every_pixel(tile: Tile, height: int, width: int, twice: int | None) -> None:
    enlarged = (2 * height, 2 * width) if twice else None
    of = three(height=height, width=width, enlarged=enlarged)
    made = boxes(of, tile)
    assert made.width * made.height == tile.rows
    assert made.width * made.across >= width
    assert made.height * made.down >= height
    assert made.width * (made.across - 1) < width
    assert made.height * (made.down - 1) < height


def test_only_what_suits_is_offered() -> None:
    of = three(images=2, height=32, width=32, channels=1280, filters=1280)
    assert tactics(of, CHIP)
    assert tactics(of, limits_of(120)) == ()
    assert tactics(replace(of, dtype="float32"), CHIP) == ()
    assert tactics(replace(of, stride=2), CHIP) == ()
    assert tactics(replace(of, enlarged=(64, 64)), CHIP)
    assert tactics(replace(of, enlarged=(63, 64)), CHIP) == ()
    assert tactics(replace(of, enlarged=(64, 64), padding=(1, 1, 0, 0)), CHIP) == ()
    assert tactics(replace(of, epilogue=Epilogue(activation="silu")), CHIP) == ()
    assert tactics(three(filters=8), CHIP) == ()
    assert tactics(three(channels=8), CHIP) == ()
    alone = replace(of, kernel=(1, 1), padding=(0, 0, 0, 0))
    assert all(isinstance(tactic, Sm90Product) for tactic in tactics(alone, CHIP))


@pytest.mark.parametrize(
    ("height", "channels", "filters", "best"),
    [
        (32, 1280, 1280, "2x128x160 1"),
        (32, 2560, 1280, "2x256x160 2"),
        (64, 640, 640, "2x256x160 1"),
        (128, 320, 320, "2x256x160 1"),
    ],
)
def test_the_first_choice_fills_the_chip(
    height: int, channels: int, filters: int, best: str
) -> None:
    """SDXL's convolutions at 1024 x 1024: whole waves of 132 multiprocessors."""
    of = three(height=height, width=height, channels=channels, filters=filters)
    first = tactics(of, CHIP)[0]
    assert isinstance(first, Sm90Convolution)
    cut = first.cut
    assert cut.name == best
    waves = cut.tiles * cut.tile.cluster * cut.splits / CHIP.multiprocessors
    assert waves / np.ceil(waves) > 0.96


@pytest.mark.parametrize("dtype", OF_CONVOLUTIONS)
def test_128_channels_of_the_vae_take_the_tile_that_is_theirs(dtype: str) -> None:
    sizes = {"images": 1, "height": 1024, "width": 1024, "channels": 256, "filters": 128}
    first = tactics(three(dtype=dtype, **sizes), CHIP)[0]
    assert isinstance(first, Sm90Convolution)
    assert first.cut.name == "2x256x128 1"

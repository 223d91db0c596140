"""`conv` against its reference, on the host: windows, edges, sources, enlarging, splits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import conv, tiles
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.conv import Convolution, TiledConvolution
from diffusion_rt.kernels.driver import Misuse, limits_of
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.tactic import Operands
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
VARIANTS = [(tile, dtype) for dtype, made in tiles.OF_CONVOLUTIONS.items() for tile in made]
NAMES = [f"{tile.name}-{dtype}" for tile, dtype in VARIANTS]
SMALL = tiles.OF_CONVOLUTIONS["float32"][0]
CHIP = limits_of(90)

BENCHES: dict[tuple[str, str], KernelBench] = {}


def bench_of(tile: tiles.Tile, dtype: str) -> KernelBench:
    """A variant on a device, compiled once."""
    key = tile.name, dtype
    if key not in BENCHES:
        BENCHES[key] = KernelBench([CATALOGUE[f"conv_{tile.name}.{dtype}"]])
    return BENCHES[key]


def address(buffer: Any) -> int:
    """0 where there is none."""
    return 0 if buffer is None else int(buffer.address)


class Case:
    """Random arrays of a convolution, in buffers as wide as its strides."""

    def __init__(self, of: Convolution, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.of = of

        def some(*shape: int) -> Array:
            return rounded(rng.normal(size=shape), of.dtype)

        has, size = of.epilogue, (of.images, *of.output_size)
        self.x = some(of.images, of.height, of.width, of.channels)
        self.weight = some(*of.weight_shape) / 4
        self.bias = some(of.filters) if has.bias else None
        self.vector = some(of.images, of.filters) if has.vector else None
        columns = has.columns(of.filters)
        self.residual = some(*size, columns) if has.residual else None

    @property
    def _epilogue(self) -> dict[str, Any]:
        activation = self.of.epilogue.activation
        return {"bias": self.bias, "vector": self.vector, "activation": activation}

    @property
    def truth(self) -> Array:
        of = self.of
        geometry: dict[str, Any] = {
            "stride": of.stride,
            "padding": of.padding,
            "enlarged": of.enlarged,
        }
        epilogue = {"residual": self.residual, **self._epilogue}
        return conv.reference(self.x, self.weight, **geometry, **epilogue)

    @property
    def plain(self) -> Array:
        """The same by unfolding, in float32, rounded to the type at the end."""
        of = self.of
        if of.doubled:
            sums = plain_doubled(self.x, self.weight)
        else:
            x = self.x
            if of.enlarged:
                x = x.repeat(2, 1).repeat(2, 2)[:, : of.enlarged[0], : of.enlarged[1]]
            top, left, bottom, right = of.padding
            x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
            seen = windows(x, of.kernel, of.stride).reshape(-1, of.depth)
            sums = plain_sums(seen, self.weight.reshape(of.filters, -1))
        residual = self.residual
        if residual is not None:
            residual = residual.reshape(of.images, -1, residual.shape[-1])
        sums = sums.reshape(of.images, -1, of.filters)
        result = plain_epilogue(sums, residual=residual, **self._epilogue)
        return rounded(result.reshape(of.images, *of.output_size, -1), of.dtype)

    def run(self, tile: tiles.Tile, splits: int = 1) -> Array:
        of, bench = self.of, bench_of(tile, self.of.dtype)
        sizes = (of.dtype, of.rows, of.filters, of.depth)
        tactic = TiledConvolution(of, tiles.cut(tile, splits, *sizes, parts=of.parts))
        kind = storage(of.dtype)

        def put(values: Array | None, stride: int) -> Any:
            if values is None:
                return None
            flat = values.reshape(-1, values.shape[-1])
            wide = np.full((len(flat), stride), 0xFFFF if kind == "u2" else np.nan, kind)
            wide[:, : flat.shape[1]] = stored(flat, of.dtype)
            return bench.put(wide)

        cut_at, two = of.first_channels, of.first_channels < of.channels
        shape = (of.rows, of.output_stride)
        output = bench.poisoned(shape, kind)
        operands = Operands(
            first=address(put(self.x[..., :cut_at], of.first_stride)),
            second=address(put(self.x[..., cut_at:], of.second_stride) if two else None),
            weight=address(put(self.weight, of.channels)),
            bias=address(put(self.bias, of.filters)),
            vector=address(put(self.vector, of.vector_stride)),
            residual=address(put(self.residual, of.residual_stride)),
            output=output.address,
            partial=address(bench.poisoned([max(tactic.partial_bytes, 16)], "u1")),
            arrived=address(bench.put(np.zeros(max(tactic.counters, 1), "u4"))),
        )
        CHIP.check(tactic.launch, tactic.name)
        bench.run("conv", tactic.launch, *tactic.arguments(operands))
        got = bench.get(output, shape, kind)
        bench.clear()
        columns = of.epilogue.columns(of.filters)
        assert np.isnan(read(got[:, columns:], of.dtype)).all()  # Nothing beside the output.
        result = read(got[:, :columns], of.dtype)
        return result.reshape(of.images, *of.output_size, columns)

    def check(self, tile: tiles.Tile = SMALL, splits: int = 1) -> None:
        got, truth = self.run(tile, splits), self.truth
        assert np.abs(got - truth).max() <= 2 * np.abs(self.plain - truth).max()


def sizes(**changes: Any) -> Convolution:
    """A convolution of 3x3 over small images, with some sizes of its own."""
    usual: dict[str, Any] = {
        "dtype": "float16",
        "images": 2,
        "height": 7,
        "width": 9,
        "channels": 40,
        "filters": 24,
        "kernel": (3, 3),
        "padding": (1, 1, 1, 1),
    }
    return Convolution(**{**usual, **changes})


@pytest.mark.parametrize(("tile", "dtype"), VARIANTS, ids=NAMES)
def test_every_variant_is_its_reference(tile: tiles.Tile, dtype: str) -> None:
    """Past the edges of a tile, over two images."""
    of = sizes(dtype=dtype, filters=tile.columns + 8, channels=16, epilogue=Epilogue(bias=True))
    Case(of).check(tile)


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 8},
        {"channels": 8, "height": 1, "width": 1},
        {"kernel": (1, 1), "padding": (0, 0, 0, 0)},
        {"stride": 2},
        {"stride": 2, "height": 8, "width": 8},
        {"stride": 2, "padding": (0, 0, 1, 1)},  # as the VAE's encoder has it
        {"enlarged": (14, 18)},
        {"enlarged": (2, 2), "height": 1, "width": 1},
        {"enlarged": (14, 18), "padding": (0, 2, 1, 0)},
        {"enlarged": (13, 17)},  # the size that was odd before it was halved
        {"enlarged": (13, 18)},
        {"first_channels": 24},
        {"first_channels": 8, "first_stride": 16, "second_stride": 48, "output_stride": 32},
        {"kernel": (1, 3), "padding": (0, 2, 0, 0)},
    ],
    ids=str,
)
def test_geometry(dtype: str, changes: dict[str, Any]) -> None:
    Case(sizes(dtype=dtype, **changes)).check()


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_summed_filters_are_the_filter_over_the_enlarged_picture(
    height: int, width: int, seed: int
) -> None:
    """Of whole numbers, whose sums are exact: to the last bit, at every edge."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 9, (2, height, width, 8)).astype("f4")
    weight = rng.integers(-9, 9, (16, 3, 3, 8)).astype("f4")
    enlarged = 2 * height, 2 * width
    whole = conv.reference(x, weight, padding=(1, 1, 1, 1), enlarged=enlarged)
    np.testing.assert_array_equal(conv.reference(x, conv.doubled_filters(weight)), whole)


def test_a_doubled_convolution_of_all_it_may_have() -> None:
    """Two images and two sources, tiles of which the last of a parity is not full, splits."""
    has = Epilogue(bias=True, vector=True, activation="silu", residual=True)
    of = sizes(
        enlarged=(14, 18),
        first_channels=24,
        second_stride=48,
        vector_stride=48,
        residual_stride=32,
        epilogue=has,
    )
    assert of.doubled
    for splits in (1, 3):
        Case(of).check(splits=splits)


@pytest.mark.parametrize("dtype", tiles.ELEMENTS)
@pytest.mark.parametrize("splits", [1, 3])
def test_epilogue(dtype: str, splits: int) -> None:
    has = Epilogue(bias=True, vector=True, activation="silu", residual=True)
    of = sizes(dtype=dtype, epilogue=has, vector_stride=48, residual_stride=32)
    Case(of).check(splits=splits)


@given(
    images=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 6).map(lambda n: n * 8),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    odd=st.none() | st.tuples(st.integers(0, 1), st.integers(0, 1)),
    splits=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_any_geometry(
    images: int,
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    padding: conv.Padding,
    odd: tuple[int, int] | None,
    splits: int,
) -> None:
    enlarged = odd and (2 * height - odd[0], 2 * width - odd[1])
    seen = enlarged or (height, width)
    assume(seen[0] + padding[0] + padding[2] >= kernel[0])
    assume(seen[1] + padding[1] + padding[3] >= kernel[1])
    of = sizes(
        images=images,
        height=height,
        width=width,
        channels=channels,
        first_channels=channels // 16 * 8,
        kernel=kernel,
        stride=stride,
        padding=padding,
        enlarged=enlarged,
    )
    Case(of).check(splits=splits)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"height": 0}, "0 x 9"),
        ({"stride": 0}, "stride 0"),
        ({"channels": 12}, "depth=12"),
        ({"filters": 4}, "columns=4"),
        ({"first_channels": 4}, "first_depth=4"),
        ({"enlarged": (14, 16)}, "width 9 enlarged to 16"),
        ({"kernel": (9, 9), "padding": (0, 0, 0, 0)}, "leaves nothing"),
        ({"padding": (1, 1, 1, -1)}, "leaves nothing"),
        ({"output_stride": 16}, "output_stride=16"),
    ],
)
def test_sizes_it_does_not_take_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Misuse, match=said):
        sizes(**changes)

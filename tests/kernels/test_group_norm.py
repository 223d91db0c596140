"""`group_statistics` and `group_norm` against their reference, on the host."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels import group_norm
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from diffusion_rt.kernels.group_norm import GroupNorm
from support.kernel_bench import KernelBench
from support.products import read, rounded, storage, stored

EPSILON = 1e-5
Array = NDArray[Any]


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["silu", "plain"])
def activate(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def bench(dtype: str, activate: bool) -> Iterator[KernelBench]:
    suffix = "_silu" if activate else ""
    names = (f"group_statistics.{dtype}", f"group_norm{suffix}.{dtype}")
    kernels = KernelBench([CATALOGUE[name] for name in names])
    yield kernels
    kernels.clear()


def sizes(dtype: str, activate: bool, *shape: int, groups: int, **wider: int) -> GroupNorm:
    images, pixels, channels = shape
    return GroupNorm(
        dtype=dtype,
        images=images,
        pixels=pixels,
        channels=channels,
        groups=groups,
        epsilon=EPSILON,
        silu=activate,
        **wider,
    )


def run(kernels: KernelBench, norm: GroupNorm, x: Array, weight: Array, bias: Array) -> Array:
    """Both kernels, twice: the second time the counters of arrivals must be as at first."""
    kind, cut = storage(norm.dtype), norm.first_channels

    def put(values: Array, stride: int) -> int:
        """In a buffer as wide as the stride, whose other elements are NaN."""
        wide = np.full((*values.shape[:-1], stride), 0xFFFF if kind == "u2" else np.nan, kind)
        wide[..., : values.shape[-1]] = stored(values, norm.dtype)
        return int(kernels.put(wide).address)

    first = put(x[..., :cut], norm.first_stride)
    second = put(x[..., cut:], norm.second_stride) if cut < norm.channels else 0
    scales = {"weight": put(weight, len(weight)), "bias": put(bias, len(bias))}
    shape = (*x.shape[:2], norm.output_stride)
    out = kernels.poisoned(shape, kind)
    partial = kernels.poisoned([norm.partial_bytes], np.uint8).address
    arrived = kernels.put(np.zeros(norm.counters, np.uint32))
    moments = kernels.poisoned([norm.moments_bytes], np.uint8).address
    for _ in range(2):
        of_statistics = norm.statistics_arguments(
            first=first, second=second, partial=partial, arrived=arrived.address, moments=moments
        )
        kernels.run("group_statistics", norm.launches[0], *of_statistics)
        of_norm = norm.arguments(
            first=first, second=second, moments=moments, output=out.address, **scales
        )
        kernels.run("group_norm", norm.launches[1], *of_norm)
    assert not kernels.get(arrived, [norm.counters], np.uint32).any()
    got = read(kernels.get(out, shape, kind), norm.dtype)
    assert np.isnan(got[..., norm.channels :]).all()  # Nothing is written beside the output.
    return got[..., : norm.channels]


def plain(norm: GroupNorm, x: Array, weight: Array, bias: Array) -> Array:
    """The same in float32 NumPy, rounded to the dtype at the end."""
    single = x.astype(np.float32).reshape(*x.shape[:2], norm.groups, -1)
    centred = single - single.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + np.float32(EPSILON))
    y = normal.reshape(x.shape) * weight.astype(np.float32) + bias.astype(np.float32)
    if norm.silu:
        y = y / (1 + np.exp(-y))
    return rounded(y, norm.dtype)


def check(kernels: KernelBench, norm: GroupNorm, x: Array, weight: Array, bias: Array) -> None:
    got = run(kernels, norm, x, weight, bias)
    truth = group_norm.reference(x, weight, bias, norm.groups, EPSILON, norm.silu)
    simple = plain(norm, x, weight, bias)
    assert np.abs(got - truth).max() <= 2 * np.abs(simple - truth).max()


def arrays(norm: GroupNorm) -> tuple[Array, Array, Array]:
    """Channels of different size and mean."""
    rng = np.random.default_rng(norm.channels)
    shape = (norm.images, norm.pixels, norm.channels)
    x = rng.normal(size=shape) * rng.uniform(0.2, 3, norm.channels)
    x = rounded(x + rng.normal(size=norm.channels), norm.dtype)
    weight, bias = rounded(rng.normal(size=(2, norm.channels)), norm.dtype)
    return x, weight, bias


@pytest.mark.parametrize(
    ("images", "pixels", "channels", "groups"),
    [
        (1, 1, 8, 1),
        (2, 65, 40, 4),  # groups of 10, across the vectors of 8
        (1, 255, 64, 32),
        (2, 9, 320, 32),
        (1, 70, 1920, 32),  # groups of 60
        (1, 65, 2560, 32),
        (3, 1000, 16, 2),
    ],
)
def test_group_norm_is_its_reference(
    bench: KernelBench,
    dtype: str,
    activate: bool,
    images: int,
    pixels: int,
    channels: int,
    groups: int,
) -> None:
    norm = sizes(dtype, activate, images, pixels, channels, groups=groups)
    check(bench, norm, *arrays(norm))


@pytest.mark.parametrize(
    "wider",
    [
        {"first_channels": 24},
        {"first_channels": 8, "first_stride": 16, "second_stride": 40, "output_stride": 48},
        {"first_stride": 80},
    ],
    ids=str,
)
def test_two_sources_and_wider_buffers(
    bench: KernelBench, dtype: str, activate: bool, wider: dict[str, int]
) -> None:
    """Groups of 10 channels: one lies in both sources."""
    norm = sizes(dtype, activate, 2, 67, 40, groups=4, **wider)
    check(bench, norm, *arrays(norm))


def test_many_blocks_of_an_image(bench: KernelBench, dtype: str, activate: bool) -> None:
    """As many as the last of them can merge, most of them not full."""
    norm = sizes(dtype, activate, 1, 6100, 320, groups=32, multiprocessors=1000)
    assert norm.launches[0].grid[0] > 250
    check(bench, norm, *arrays(norm))


def test_a_mean_far_from_zero_does_not_cancel(
    bench: KernelBench, dtype: str, activate: bool
) -> None:
    rng = np.random.default_rng(1)
    x = rounded(rng.normal(size=(1, 300, 40)) + 500, dtype)
    x[0, 0] += 8  # The pixel that the sums are shifted by is no ordinary one.
    check(bench, sizes(dtype, activate, 1, 300, 40, groups=4), x, *np.ones((2, 40)))


def test_a_batch_equals_its_images_in_any_order_of_blocks(
    bench: KernelBench, dtype: str, activate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few multiprocessors that an image is cut alike, alone or with others.
    norm = sizes(dtype, activate, 3, 130, 40, groups=4, multiprocessors=1)
    x = rounded(np.random.default_rng(2).normal(size=(3, 130, 40)), dtype)
    weight, bias = np.ones((2, 40))
    together = run(bench, norm, x, weight, bias)
    monkeypatch.setenv("HOST_CUDA_ORDER", "reverse")
    one = replace(norm, images=1)
    np.testing.assert_array_equal(
        together, np.concatenate([run(bench, one, x[i : i + 1], weight, bias) for i in range(3)])
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 12}, "12 channels"),
        ({"channels": 0}, "0 channels"),
        ({"channels": 2568}, "up to 2560"),
        ({"channels": -8}, "-8 channels"),
        ({"groups": 3}, "40 channels in 3 groups"),
        ({"groups": 0}, "40 channels in 0 groups"),
        ({"pixels": 0}, "0 pixels"),
        ({"first_channels": 4}, "first_channels=4"),
        ({"first_channels": 48}, "first_channels=48"),
        ({"output_stride": 44}, "output_stride=44"),
    ],
)
def test_sizes_it_does_not_take_are_refused(changes: dict[str, int], said: str) -> None:
    usual = {"pixels": 64, "channels": 40, "groups": 4}
    with pytest.raises(Misuse, match=said):
        GroupNorm(dtype="float16", images=1, epsilon=EPSILON, silu=False, **{**usual, **changes})


@pytest.mark.parametrize("channels", [8, 40, 320, 640, 960, 1280, 1920, 2560])
@pytest.mark.parametrize("pixels", [1, 4096, 16384, 1 << 20])
@pytest.mark.parametrize("multiprocessors", [16, 132])
def test_cuts_cover_every_pixel_and_fit_every_chip(
    channels: int, pixels: int, multiprocessors: int
) -> None:
    norm = sizes("float16", True, 2, pixels, channels, groups=4, multiprocessors=multiprocessors)
    for launch, chunk_pixels in zip(norm.launches, norm.chunk_pixels, strict=True):
        blocks, threads = launch.grid[0], launch.block[0]
        assert (blocks - 1) * chunk_pixels < pixels <= blocks * chunk_pixels
        assert threads % 32 == 0
        assert channels // 8 * norm.lanes <= threads <= group_norm.MOST_THREADS
        assert norm.lanes * channels <= group_norm.MOST_CHANNELS
    assert norm.launches[0].grid[0] <= min(group_norm.MOST_CHUNKS, 2 * multiprocessors)

"""`group_statistics` and `group_norm` against their reference, on the host."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels import group_norm
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from support.kernel_bench import KernelBench

EPSILON = 1e-5
Array = NDArray[Any]


@pytest.fixture(params=["float16", "float32"])
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


def run(kernels: KernelBench, x: Array, weight: Array, bias: Array, groups: int) -> Array:
    """Both kernels, twice: the second time the counters of arrivals must be as at first."""
    images, pixels, channels = x.shape
    sizes = (images, pixels, channels, groups)
    source, out = kernels.put(x), kernels.poisoned(x.shape, x.dtype)
    partial = kernels.poisoned([group_norm.partial_bytes(*sizes)], np.uint8)
    arrived = kernels.put(np.zeros(images, np.uint32))
    moments = kernels.poisoned([images, groups, 2], "f4")
    first, second = group_norm.statistics_cut(*sizes), group_norm.cut(*sizes)
    for _ in range(2):
        kernels.run(
            "group_statistics",
            first.launch,
            *(source, partial, arrived, moments, pixels, channels, groups),
            *(first.chunk_pixels, first.lanes, EPSILON),
        )
        kernels.run(
            "group_norm",
            second.launch,
            *(source, moments, kernels.put(weight), kernels.put(bias), out),
            *(pixels, channels, groups, second.chunk_pixels, second.lanes),
        )
    assert not kernels.get(arrived, [images], np.uint32).any()
    return kernels.get(out, x.shape, x.dtype)


def plain(x: Array, weight: Array, bias: Array, groups: int, activate: bool) -> Array:
    """The same in float32 NumPy, rounded to the dtype at the end."""
    single = x.astype(np.float32).reshape(*x.shape[:2], groups, -1)
    centred = single - single.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + np.float32(EPSILON))
    y = normal.reshape(x.shape) * weight.astype(np.float32) + bias.astype(np.float32)
    if activate:
        y = y / (1 + np.exp(-y))
    result: Array = y.astype(x.dtype)
    return result


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
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(images, pixels, channels)) * rng.uniform(0.2, 3, channels)
    x = (x + rng.normal(size=channels)).astype(dtype)
    weight, bias = rng.normal(size=(2, channels)).astype(dtype)
    got = run(bench, x, weight, bias, groups)
    truth = group_norm.reference(x, weight, bias, groups, EPSILON, activate)
    simple = plain(x, weight, bias, groups, activate)
    assert np.abs(got - truth).max() <= 2 * np.abs(simple - truth).max()


def test_a_mean_far_from_zero_does_not_cancel(
    bench: KernelBench, dtype: str, activate: bool
) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(1, 300, 40)) + 500).astype(dtype)
    x[0, 0] += 8  # The pixel that the sums are shifted by is no ordinary one.
    weight, bias = np.ones((2, 40), dtype)
    got = run(bench, x, weight, bias, 4)
    truth = group_norm.reference(x, weight, bias, 4, EPSILON, activate)
    simple = plain(x, weight, bias, 4, activate)
    assert np.abs(got - truth).max() <= 2 * np.abs(simple - truth).max()


def test_a_batch_equals_its_images_in_any_order_of_blocks(
    bench: KernelBench, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(2).normal(size=(3, 130, 40)).astype(dtype)
    weight, bias = np.ones((2, 40), dtype)
    together = run(bench, x, weight, bias, 4)
    monkeypatch.setenv("HOST_CUDA_ORDER", "reverse")
    alone = [run(bench, x[i : i + 1], weight, bias, 4) for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(
    ("channels", "groups"), [(12, 4), (0, 1), (2568, 1), (40, 3), (40, 0), (-8, 1)]
)
def test_channels_it_does_not_take_are_refused(channels: int, groups: int) -> None:
    for cut in (group_norm.statistics_cut, group_norm.cut):
        with pytest.raises(Misuse, match="must divide by 8 and by the groups"):
            cut(1, 64, channels, groups)


@pytest.mark.parametrize("channels", [8, 40, 320, 640, 960, 1280, 1920, 2560])
@pytest.mark.parametrize("pixels", [1, 4096, 16384, 1 << 20])
def test_cuts_cover_every_pixel_and_fit_every_chip(channels: int, pixels: int) -> None:
    sizes = (2, pixels, channels, 4)
    for cut in (group_norm.statistics_cut(*sizes), group_norm.cut(*sizes)):
        blocks, threads = cut.launch.grid[0], cut.launch.block[0]
        assert (blocks - 1) * cut.chunk_pixels < pixels <= blocks * cut.chunk_pixels
        assert threads % 32 == 0
        assert channels // 8 * cut.lanes <= threads <= 320
        assert cut.lanes * channels <= group_norm.MOST_CHANNELS
    assert group_norm.statistics_cut(*sizes).launch.grid[0] <= 64

"""`pixels` against its reference, on the host: the same bytes, and no number that is none."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels import pixels
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from support.brightness import as_image, close_to_halves, every
from support.kernel_bench import KernelBench
from support.products import read, rounded, storage, stored

Array = NDArray[Any]
Bench = tuple[KernelBench, str]
BEHIND = 9  # bytes after the last pixel, which stay what they were


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kernels = KernelBench([CATALOGUE[f"pixels.{request.param}"]])
    yield kernels, request.param
    kernels.clear()


def run(bench: Bench, image: Array, flag: int = 0) -> tuple[Array, int]:
    """The bytes of [images, 3, count] numbers that the type holds, and the flag after."""
    kernels, dtype = bench
    images, _, count = image.shape
    shape = (images, count, 3)
    out = kernels.poisoned([images * count * 3 + BEHIND], np.uint8)
    not_finite = kernels.put(np.array([flag], np.int32))
    given = kernels.put(stored(image, dtype))
    kernels.run("pixels", pixels.launch(count, images), given, out, not_finite, count)
    got = kernels.get(out, [out.nbytes], np.uint8)
    assert (got[-BEHIND:] == 0xFF).all()
    return got[:-BEHIND].reshape(shape), int(kernels.get(not_finite, [1], np.int32)[0])


@pytest.mark.parametrize("count", [1, 7, 8, 255, 256, 1000, 2048, 2049, 6144])
@pytest.mark.parametrize("images", [1, 3])
def test_colours_lie_side_by_side(bench: Bench, count: int, images: int) -> None:
    rng = np.random.default_rng(count)
    image = rounded(rng.normal(0, 0.7, (images, 3, count)), bench[1])
    got, not_finite = run(bench, image)
    np.testing.assert_array_equal(got, pixels.reference(image))
    assert not_finite == 0


@pytest.mark.parametrize("missing", [0, 1])
def test_every_number_of_16_bits_and_all_that_is_close_to_a_half(
    bench: Bench, missing: int
) -> None:
    """By vectors, and where 8 does not divide the pixels."""
    dtype = bench[1]
    values = close_to_halves()
    if dtype != "float32":
        values = read(every(storage(dtype)), dtype)
    image = as_image(values[: len(values) // 8 * 8 - missing])
    got, not_finite = run(bench, image)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        np.testing.assert_array_equal(got, pixels.reference(image))
    assert not_finite == (dtype != "float32")


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [2056, 2057])
def test_a_number_that_is_not_finite_is_told(bench: Bench, value: float, count: int) -> None:
    image = np.zeros((2, 3, count), np.float32)
    for place in ((0, 0, 0), (0, 1, 1023), (1, 2, count - 1)):
        image[place] = value
        got, not_finite = run(bench, image)
        assert not_finite == 1
        np.testing.assert_array_equal(got, pixels.reference(image))
        image[place] = 0
    assert run(bench, image)[1] == 0
    assert run(bench, image, flag=1)[1] == 1, "another launch's finding is lost"


def test_the_reference_is_the_nearest_byte_and_of_two_the_even_one() -> None:
    values = close_to_halves().clip(-1, 1)
    exact = (values.astype(np.float64) + 1) * 127.5
    found = pixels.reference(as_image(values))[0, :, 0]
    assert np.abs(found - exact).max() < 0.5 + 2.0**-15  # three roundings of float32 below 255
    scaled = (values / 2 + np.float32(0.5)) * np.float32(255)
    halves = scaled % 1 == 0.5
    assert halves.sum() > 255
    assert not (found[halves] % 2).any()
    np.testing.assert_array_equal(found[halves], scaled[halves].round())


@pytest.mark.parametrize("count", [0, 2**31 // 3])
def test_sizes_it_does_not_take_are_refused(count: int) -> None:
    with pytest.raises(Misuse, match=f"{count} pixels an image"):
        pixels.launch(count, 1)

"""`layer_norm` against its reference, on the host."""

from collections.abc import Iterator

import numpy as np
import pytest

from diffusion_rt.kernels import layer_norm
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from support.kernel_bench import KernelBench
from support.products import read, rounded, storage, stored

EPSILON = 1e-5


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def bench(request: pytest.FixtureRequest) -> Iterator[tuple[KernelBench, str]]:
    kernels = KernelBench([CATALOGUE[f"layer_norm.{request.param}"]])
    yield kernels, request.param
    kernels.clear()


@pytest.mark.parametrize(
    ("rows", "columns", "offset"),
    [(1, 8, 0.0), (3, 40, 3.0), (2, 256, 0.0), (5, 264, -1.0), (2, 1280, 30.0), (1, 2048, 0.5)],
)
def test_layer_norm_is_its_reference(
    bench: tuple[KernelBench, str], rows: int, columns: int, offset: float
) -> None:
    kernels, dtype = bench
    rng = np.random.default_rng(columns)
    x = rng.normal(size=(rows, columns)) * rng.uniform(0.1, 5, (rows, 1)) + offset
    x = rounded(x, dtype)
    weight, bias = rounded(rng.normal(size=(2, columns)), dtype)
    out = kernels.poisoned(x.shape, storage(dtype))
    buffers = (*(kernels.put(stored(array, dtype)) for array in (x, weight, bias)), out)
    kernels.run("layer_norm", layer_norm.launch(rows, columns), *buffers, rows, columns, EPSILON)
    got = read(kernels.get(out, x.shape, storage(dtype)), dtype).astype(np.float64)
    truth = layer_norm.reference(x, weight, bias, EPSILON)
    single = x.astype(np.float32)
    centred = single - single.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(EPSILON))
    plain = rounded(centred * scale * weight.astype("f4") + bias.astype("f4"), dtype)
    assert np.abs(got - truth).max() <= 2 * np.abs(plain - truth).max()


def test_a_constant_row_becomes_the_bias(bench: tuple[KernelBench, str]) -> None:
    kernels, dtype = bench
    x, weight, bias = np.full((2, 72), 3.25), np.ones(72), np.arange(72.0)
    place = kernels.put(stored(x, dtype))
    scales = (kernels.put(stored(weight, dtype)), kernels.put(stored(bias, dtype)))
    buffers = (place, *scales, place)  # In place, too.
    kernels.run("layer_norm", layer_norm.launch(2, 72), *buffers, 2, 72, EPSILON)
    got = read(kernels.get(place, x.shape, storage(dtype)), dtype)
    np.testing.assert_array_equal(got, [bias, bias])


@pytest.mark.parametrize("columns", [0, -8, 7, 1001, 2056])
def test_columns_it_does_not_take_are_refused(columns: int) -> None:
    with pytest.raises(Misuse, match="multiple of 8 up to 2048"):
        layer_norm.launch(4, columns)

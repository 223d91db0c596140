"""What text encoders and timesteps begin and end with, against references, on the host."""

from collections.abc import Iterator

import numpy as np
import pytest

from diffusion_rt.kernels import embedding, select_row, timestep_embedding
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from support.kernel_bench import KernelBench
from support.products import read, rounded, storage, stored


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def bench(request: pytest.FixtureRequest) -> Iterator[tuple[KernelBench, str]]:
    names = ("embedding", "timestep_embedding", "select_row")
    kernels = KernelBench([CATALOGUE[f"{name}.{request.param}"] for name in names])
    yield kernels, request.param
    kernels.clear()


@pytest.mark.parametrize("columns", [8, 40, 1032])
def test_embedding(bench: tuple[KernelBench, str], columns: int) -> None:
    kernels, dtype = bench
    rng = np.random.default_rng(0)
    table, positions = (rounded(rng.normal(size=(n, columns)), dtype) for n in (11, 9))
    ids = rng.integers(0, 11, (3, 7))
    ids[0, 0], ids[2, 6], ids[1, 3], ids[1, 4] = 0, 10, -1, 11  # The last two are no tokens.
    wide = np.full((3, 10), 10**12)
    wide[:, :7] = ids
    out = kernels.poisoned((3, 7, columns), storage(dtype))
    buffers = (kernels.put(stored(table, dtype)), kernels.put(stored(positions, dtype)), out)
    launch = embedding.launch(3, 7, columns)
    kernels.run("embedding", launch, kernels.put(wide), *buffers, columns, 11, 10)
    got = read(kernels.get(out, (3, 7, columns), storage(dtype)), dtype)
    truth = embedding.reference(ids, table, positions)
    np.testing.assert_array_equal(got, rounded(truth, dtype))
    assert np.isnan(got[1, 3:5]).all()
    assert np.isnan(got).sum() == 2 * columns


@pytest.mark.parametrize("cosine_first", [True, False])
@pytest.mark.parametrize("width", [4, 160, 257])
def test_timestep_embedding(bench: tuple[KernelBench, str], width: int, cosine_first: bool) -> None:
    """Two rows of three values each, as the sizes and crops of two images lie in a wider row."""
    kernels, dtype = bench
    values = np.array([[0, 999, 1e-3], [1024, 4096, 500.5]], np.float32)
    frequencies = np.exp(-np.log(10000) * np.arange(width) / width).astype(np.float32)
    outer, inner = 6 * width + 8, 2 * width
    out = kernels.poisoned((2, outer), storage(dtype))
    kernels.run(
        "timestep_embedding",
        timestep_embedding.launch(6, width),
        *(kernels.put(values), kernels.put(frequencies), out),
        *(width, 3, outer, inner, int(cosine_first)),
    )
    got = read(kernels.get(out, (2, outer), storage(dtype)), dtype)
    assert np.isnan(got[:, 6 * width :]).all()
    truth = timestep_embedding.reference(values, frequencies, cosine_first)
    plain = rounded(truth, dtype)
    error = np.abs(got[:, : 6 * width].reshape(truth.shape) - truth).max()
    # What is left of whole turns is a float32 below one half: an angle to 2^-25 of a turn.
    assert error <= np.abs(plain - truth).max() + 2 * np.pi * 2.0**-25


@pytest.mark.parametrize("token", [49407, select_row.LARGEST, 3, 777])
def test_select_row(bench: tuple[KernelBench, str], token: int) -> None:
    kernels, dtype = bench
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 40000, (4, 9))
    ids[0, 8] = ids[1, 4] = ids[1, 7] = ids[2, 0] = ids[2, 5] = ids[3, 1] = 49407
    ids[3, 6] = 3
    source = rounded(rng.normal(size=(4, 9, 40)), dtype)
    wide = np.full((4, 9, 48), 0xFFFF if dtype == "bfloat16" else np.nan, storage(dtype))
    wide[..., :40] = stored(source, dtype)
    out = kernels.poisoned((4, 56), storage(dtype))
    buffers = (kernels.put(ids), kernels.put(wide), out)
    launch = select_row.launch(4, 40)
    kernels.run("select_row", launch, *buffers, 9, 40, token, 9, 9 * 48, 48, 56)
    got = read(kernels.get(out, (4, 56), storage(dtype)), dtype)
    np.testing.assert_array_equal(got[:, :40], select_row.reference(ids, source, token))
    assert np.isnan(got[:, 40:]).all()


@pytest.mark.parametrize("columns", [0, 12])
def test_columns_they_do_not_take_are_refused(columns: int) -> None:
    with pytest.raises(Misuse, match=f"{columns} columns; a multiple of 8"):
        embedding.launch(1, 7, columns)
    with pytest.raises(Misuse, match=f"{columns} columns; a multiple of 8"):
        select_row.launch(1, columns)

"""`mma.h` on the host: layouts of fragments, waits, and what an instruction does not allow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.driver import DeviceLost, Launch, Parameter
from support.kernel_bench import DEVICE, KernelBench

SOURCE = Path(__file__).resolve().parents[1] / "support" / "mma.cu"
WARP = Launch(grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=768)
ELEMENTS = {"float16": "half", "bfloat16": "bfloat16"}


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE, raising=False)


def bench_of(
    kernel: str, count: int, dtype: str = "float16", transposed: bool = False, waited: int = 0
) -> KernelBench:
    constants = {
        "ELEMENT": ELEMENTS[dtype],
        "TRANSPOSED": str(int(transposed)),
        "WAITED": str(waited),
    }
    variant = Variant(
        name=kernel,
        kernel=kernel,
        source=str(SOURCE),
        constants=tuple(constants.items()),
        parameters=tuple(Parameter(f"p{i}", "pointer", 4) for i in range(count)),
        registers=64,
    )
    return KernelBench([variant])


def stored(values: NDArray[Any], dtype: str) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """The bits of values in a type, and the values they stand for."""
    if dtype == "float16":
        return values.astype("f2").view("u2"), values.astype("f2").astype("f8")
    bits = (values.astype("f4").view("u4") >> 16).astype("u2")
    return bits, (bits.astype("u4") << 16).view("f4").astype("f8")


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", list(ELEMENTS))
def test_a_product_of_one_warp(
    dtype: str, transposed: bool, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_CUDA_ORDER", order)
    bench = bench_of("product", 3, dtype, transposed)
    rng = np.random.default_rng(3)
    a, x = stored(rng.normal(size=(16, 16)), dtype)
    w, y = stored(rng.normal(size=(16, 8) if transposed else (8, 16)), dtype)
    start = rng.normal(size=(16, 8)).astype("f4")
    c = bench.put(start)
    bench.run("product", WARP, bench.put(a), bench.put(w), c)
    truth = start + x @ (y if transposed else y.T)
    got = bench.get(c, (16, 8), "f4")
    # One rounding, by cutting off.
    assert np.all(np.abs(got - truth) <= np.spacing(np.abs(truth).astype("f4")))
    assert np.all(np.abs(got) <= np.abs(truth))


def test_a_missing_wait_shows() -> None:
    bench = bench_of("product", 3, waited=1)  # The second copy is not waited for.
    a = bench.put(np.ones((16, 16), "f2"))
    c = bench.put(np.zeros((16, 8), "f4"))
    bench.run("product", WARP, a, bench.put(np.ones((8, 16), "f2")), c)
    assert np.isnan(bench.get(c, (16, 8), "f4")).all()


def test_rows_that_share_banks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 32 bytes, one after the other: every fourth lies in the same banks."""
    bench = bench_of("product", 3)
    a, w = bench.put(np.ones((16, 16), "f2")), bench.put(np.ones((8, 16), "f2"))
    c = bench.put(np.zeros((16, 8), "f4"))
    bench.run("product", WARP, a, w, c)
    assert (bench.get(c, (16, 8), "f4") == 16).all()
    monkeypatch.setenv("HOST_CUDA_BANKS", "1")
    bench.run("product", WARP, a, w, c)
    with pytest.raises(DeviceLost, match="same banks"):
        bench.stream.synchronize()


def test_fragments_lie_as_the_instruction_set_says() -> None:
    bench = bench_of("fragments", 3)
    matrices = np.arange(1, 257, dtype=np.uint16).reshape(4, 8, 8)
    plain, transposed = (bench.poisoned((32, 4), "u4") for _ in range(2))
    bench.run("fragments", WARP, bench.put(matrices), plain, transposed)
    matrices[1, 1] = 0  # The row that lane 9 copied from outside.
    for name, buffer in (("plain", plain), ("transposed", transposed)):
        got = bench.get(buffer, (32, 4), "u4").view("u2").reshape(32, 4, 2)
        for lane in range(32):
            for matrix in range(4):
                for i in range(2):
                    row, column = lane // 4, lane % 4 * 2 + i
                    if name == "transposed":
                        row, column = column, row
                    assert got[lane, matrix, i] == matrices[matrix, row, column]


@pytest.mark.parametrize("dtype", list(ELEMENTS))
def test_a_pair_is_packed_low_first(dtype: str) -> None:
    bench = bench_of("packed", 2, dtype)
    pairs = np.random.default_rng(0).integers(-128, 128, (32, 2)).astype("f4")
    out = bench.poisoned([32], "u4")
    bench.run("packed", WARP, bench.put(pairs), out)
    got = bench.get(out, [32], "u4").view("u2").reshape(32, 2)
    np.testing.assert_array_equal(got, stored(pairs, dtype)[0])


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("outside", "outside the shared memory"),
        ("crooked", "not aligned"),
        ("past_the_end", "past the end"),
        ("apart", "different exchanges"),
    ],
)
def test_what_the_hardware_would_not_forgive_is_found(kernel: str, said: str) -> None:
    bench = bench_of(kernel, 1)
    launch = Launch(grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=64)
    bench.run(kernel, launch, bench.put(np.zeros(4, "u4")))
    with pytest.raises(DeviceLost, match=said):
        bench.stream.synchronize()

"""Fused operations of the GPU run: what is right passes, and what is not is found."""

import time
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.bench import gpu_fused
from diffusion_rt.bench.gpu_bench import Bench
from diffusion_rt.bench.gpu_case import run
from diffusion_rt.bench.gpu_chip import SIMULATOR
from diffusion_rt.bench.gpu_fused import Fused, Made, operations
from diffusion_rt.bench.gpu_rows import Row, Sink
from diffusion_rt.kernels.conv import Convolution
from diffusion_rt.kernels.driver import limits_of
from diffusion_rt.kernels.gemm import Product


def test_a_product_with_a_residual_in_place_is_right(tmp_path: Path) -> None:
    rows: list[Row] = []
    gpu_fused.check(Sink("p", SIMULATOR, tmp_path, time.time() + 60, "c", "a" * 40, rows.append))
    assert [(row.name, row.outcome) for row in rows] == [("product", "right")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_operand_counts(dtype: str) -> None:
    """A product of two sources with a vector, and each of its operands spoilt in turn."""
    product = Product(
        dtype=dtype,
        rows=20,
        columns=24,
        depth=40,
        first_depth=16,
        image_rows=10,
        epilogue=gpu_fused.ALL,
    )
    made = Made.of(product)
    (tactic,) = gpu_fused._tried(product, limits_of(80), tiny=True)
    bench = Bench(simulated=True)
    for spoilt in (None, *made.arrays):
        built = Fused("p", tactic, made).build(bench, 0)
        if spoilt is not None:
            other = {**made.arrays, spoilt: np.roll(made.arrays[spoilt], 1)}
            wrong = Made(made.dtype, other, made.truth, made.shape)
            built.enqueue = Fused("p", tactic, wrong).build(bench, 0).enqueue
            if spoilt == "residual":
                built = Fused("p", tactic, wrong).build(bench, 0)
        found = run(bench, built)
        assert (built.check(found) <= 1) == (spoilt is None), spoilt
        bench.clear()
    bench.close()


def test_all_that_models_fuse_is_among_the_operations() -> None:
    found = [operation for _, operation in operations(tiny=False)]
    convolutions = [one for one in found if isinstance(one, Convolution)]
    assert {one.dtype for one in found} == {"float16", "bfloat16"}
    assert {one.epilogue.activation for one in found} == {"none", "geglu"}
    assert any(one.first_channels < one.channels for one in convolutions)
    assert any(one.stride == 2 for one in convolutions)
    assert {(0, 0), (1, 1)} <= {
        (2 * one.height - one.enlarged[0], 2 * one.width - one.enlarged[1])
        for one in convolutions
        if one.enlarged
    }
    for operation in found:
        tried = gpu_fused._tried(operation, limits_of(90), tiny=False)
        assert len(tried) >= 2
    ways = [gpu_fused._tried(one, limits_of(90), tiny=False) for one in found]
    names = {tactic.name for tried in ways for tactic in tried}
    assert any("sm90" in name and not name.endswith(" 1") for name in names), "splits"

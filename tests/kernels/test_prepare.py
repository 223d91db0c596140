"""`prepare` against its reference, on the host."""

from typing import Any

import numpy as np
import pytest

from diffusion_rt.kernels import prepare
from diffusion_rt.kernels.step_table import cursor, step_table
from support.kernel_bench import KernelBench, tolerance

Bench = tuple[KernelBench, str]


def table(count: int, c_in: float) -> Any:
    return step_table(np.linspace(c_in, 1, count), np.ones((count, 1, 3)), [False] * count, 1, 0)


@pytest.mark.parametrize("elements", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("images", [1, 3])
def test_prepare_is_its_reference(bench: Bench, elements: int, rows: int, images: int) -> None:
    kernels, dtype = bench
    state = np.random.default_rng(elements).normal(size=(2, images, elements)).astype("f4") * 14
    steps = table(3, 0.07)
    now = cursor(3)
    now["index"] = 1
    out = kernels.poisoned([rows, images, elements], dtype)
    buffers = (kernels.put(now), kernels.put(steps), kernels.put(state), out)
    kernels.run("prepare", prepare.launch(elements, images), *buffers, elements, rows)
    got = kernels.get(out, (rows, images, elements), dtype)
    truth = prepare.reference(state, steps[1], rows)
    plain = np.broadcast_to((state[0] * steps[1]["c_in"]).astype(dtype), truth.shape)
    assert np.abs(got - truth).max() <= tolerance(plain, truth)
    np.testing.assert_array_equal(got, plain)  # One product, one rounding: to the bit.


def test_after_the_last_evaluation_nothing_is_written(bench: Bench) -> None:
    kernels, dtype = bench
    now = cursor(2)
    now["index"] = 2
    out = kernels.poisoned([1, 1, 300], dtype)
    state = kernels.put(np.ones((1, 1, 300), np.float32))
    buffers = (kernels.put(now), kernels.put(table(2, 1)), state, out)
    kernels.run("prepare", prepare.launch(300, 1), *buffers, 300, 1)
    assert np.isnan(kernels.get(out, [300], dtype)).all()

"""The roof of a roofline: two contenders that do the work they say, and what is kept of it."""

import itertools

import numpy as np
import pytest

from diffusion_rt.bench.ceilings import (
    CASE,
    COPIED,
    FLOP,
    SIDE,
    NumpyCeiling,
    TorchCeiling,
    measured,
    records_of,
)
from support.races import origin


@pytest.mark.parametrize("kind", [NumpyCeiling, TorchCeiling])
def test_a_product_and_a_copy_are_made_and_timed(kind: type[NumpyCeiling]) -> None:
    clock = itertools.count().__next__
    ceiling = kind(threads=1, side=16, copied=1000, clock=clock)
    ceiling._target[:] = 0
    found = ceiling.run(CASE)
    assert found.seconds == {"matmul": [1], "copy": [1]}
    np.testing.assert_allclose(
        found.arrays["product"], (ceiling._a @ ceiling._b)[:2, :2], rtol=1e-5, atol=1e-5
    )
    assert (ceiling._target == ceiling._source).all()
    ceiling.close()


def test_records_say_how_much_work_it_was() -> None:
    found = records_of(origin("chip"), {"numpy": {"matmul": [2.0], "copy": [0.5]}}, 2)
    product, copy = found
    assert (product.measure, product.flop, product.nbytes) == ("matmul", FLOP, None)
    assert product.setting == {"m": SIDE, "n": SIDE, "k": SIDE, "dtype": "float32", "threads": 2}
    assert (copy.measure, copy.flop, copy.nbytes) == ("copy", None, 2 * COPIED)
    assert product.benchmark == "chip"


def test_each_contender_runs_elsewhere_with_its_threads() -> None:
    told: list[str] = []
    found = measured(1, 2, 1, told.append, side=32, copied=4096)
    assert set(found) == {"numpy", "torch"}
    for laps in found.values():
        assert {name: len(values) for name, values in laps.items()} == {"matmul": 2, "copy": 2}
    assert len(told) == 2 * 3

"""The roof of a roofline: contenders that do the work they say, and what is kept of it."""

import itertools

import numpy as np
import pytest

from diffusion_rt.bench.ceilings import CASE, COPIED, KINDS, Ceiling, measured, records_of
from diffusion_rt.bench.gpu_tables import roof
from diffusion_rt.bench.shelves import Shelf
from support.races import origin


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_a_copy_are_made_and_timed(kind: type[Ceiling]) -> None:
    clock = itertools.count().__next__
    ceiling = kind(threads=1, sides=(16, 32), copied=1000, clock=clock)
    ceiling._target[:] = 0
    found = ceiling.run(CASE)
    assert found.seconds == {"16": [1], "32": [1]} | ({"copy": [1]} if kind.copies else {})
    for side, (a, b, product) in ceiling._pairs.items():
        np.testing.assert_allclose(product, a @ b, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.arrays[str(side)], product[:2, :2])
    assert (ceiling._target == ceiling._source).all()
    ceiling.close()


def test_records_say_how_much_work_it_was_and_the_best_is_the_roof() -> None:
    laps = {"numpy": {"1000": [2.0, 4.0], "copy": [0.5, 0.25]}, "torch": {"2000": [9.0, 8.0]}}
    found = records_of(origin("chip"), laps, 2)
    product, copy, larger = found
    assert (product.measure, product.flop, product.nbytes) == ("matmul", 2 * 10**9, None)
    assert product.setting == {"m": 1000, "n": 1000, "k": 1000, "dtype": "float32", "threads": 2}
    assert (copy.measure, copy.flop, copy.nbytes) == ("copy", None, 2 * COPIED)
    assert (larger.contender, larger.flop) == ("torch", 16 * 10**9)
    assert product.benchmark == "chip"
    top = roof(Shelf(found))
    assert top is not None
    assert (top.flops, top.bandwidth) == (16e9 / 8, 2 * COPIED / 0.25)


def test_each_contender_runs_elsewhere_with_its_threads() -> None:
    told: list[str] = []
    found = measured(1, 2, 1, told.append, sides=(32,), copied=4096)
    assert set(found) == {"numpy", "torch", "onnxruntime"}
    for name, laps in found.items():
        counts = {measure: len(values) for measure, values in laps.items()}
        assert counts == {"32": 2} | ({} if name == "onnxruntime" else {"copy": 2})
    assert len(told) == 3 * 3

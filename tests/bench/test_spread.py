"""Percentiles against NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.bench.spread import median, percentile, spread

VALUES = st.lists(st.floats(0, 1e12), min_size=1, max_size=40)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    found = percentile(sorted(values), percent)
    assert found == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-300)


@given(VALUES)
def test_a_spread_is_in_order(values: list[float]) -> None:
    found = spread(values)
    assert found.n == len(values)
    assert min(values) == found.min <= found.p50 <= found.p90 <= found.p99 <= found.max
    assert found.max == max(values)
    assert median(values) == found.p50


def test_of_a_hundred_values() -> None:
    found = spread([float(value) for value in reversed(range(101))])
    assert (found.p50, found.p90, found.p99) == (50, 90, 99)

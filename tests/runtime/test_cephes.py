"""Elementary functions in float32 against float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.runtime import cephes


@settings(max_examples=300, deadline=None)
@given(st.floats(2.0**-24, 1, width=32))
def test_logarithms_are_right_to_a_unit_in_the_last_place(x: float) -> None:
    (ours,) = cephes.log(np.array([x], np.float32))
    assert abs(ours - np.log(x)) <= np.spacing(np.float32(abs(np.log(x))))


def test_sines_and_cosines_all_round_the_circle() -> None:
    angles = (np.arange(2**20) * (2 * np.pi / 2**20)).astype(np.float32)
    sine, cosine = cephes.sine_and_cosine(angles)
    assert sine.dtype == cosine.dtype == np.float32
    assert np.abs(sine - np.sin(angles.astype(np.float64))).max() < 1e-7
    assert np.abs(cosine - np.cos(angles.astype(np.float64))).max() < 1e-7

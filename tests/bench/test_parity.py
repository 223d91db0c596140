"""The gate refuses what differs by more than float32 arithmetic explains."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.bench.parity import Gate
from diffusion_rt.engines.errors import Fault

PIXELS = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
LATENTS = np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 4, 2, 2)
WANTED: dict[str, NDArray[Any]] = {"latents": LATENTS, "pixels": PIXELS}


def test_the_reference_passes() -> None:
    assert Gate().refusal(WANTED, {name: array.copy() for name, array in WANTED.items()}) is None


@given(st.integers(0, 47), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_one_pixel_suffices(place: int, change: int) -> None:
    drawn = PIXELS.astype(int)
    drawn.reshape(-1)[place] += change
    drawn = np.clip(drawn, 0, 255)
    refusal = Gate().refusal(WANTED, {**WANTED, "pixels": drawn.astype(np.uint8)})
    worst = np.abs(drawn - PIXELS).max()
    assert Gate(levels=2).share(WANTED, {**WANTED, "pixels": drawn.astype(np.uint8)}) == worst / 2
    assert refusal == (None if worst <= 1 else f"pixels differ by {worst} of 255, at most 1")


@given(st.integers(0, 15), st.floats(-1e-2, 1e-2))
def test_one_latent_suffices(place: int, change: float) -> None:
    drawn = LATENTS.copy()
    drawn.reshape(-1)[place] += np.float32(change)
    difference = np.abs(drawn.astype(float) - LATENTS).max() / 2
    got = {**WANTED, "latents": drawn}
    assert (Gate().refusal(WANTED, got) is not None) == (difference > 1e-3)
    assert Gate().share(WANTED, got) == pytest.approx(difference / 1e-3)


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ({"latents": LATENTS}, "gives no pixels"),
        ({**WANTED, "latents": LATENTS[:, :2]}, r"latents are float32 \[1, 2, 2, 2\], not"),
        ({**WANTED, "latents": LATENTS.astype(np.float64)}, "latents are float64"),
        ({**WANTED, "latents": LATENTS * np.float32(np.nan)}, "latents are not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(drawn: dict[str, NDArray[Any]], words: str) -> None:
    refusal = Gate().refusal(WANTED, drawn)
    assert refusal is not None
    assert re.search(words, refusal)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_reference_that_proves_nothing_is_a_fault(value: float) -> None:
    flat = {"latents": np.full_like(LATENTS, value)}
    with pytest.raises(Fault, match="flat or not finite"):
        Gate().refusal(flat, flat)

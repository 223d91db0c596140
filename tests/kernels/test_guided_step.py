"""`guidance_statistics` and `guided_step` against their reference, on the host."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import guided_step
from diffusion_rt.kernels.step_table import ALL_FINITE, CURSOR, cursor, step_table
from support.kernel_bench import KernelBench, tolerance

Bench = tuple[KernelBench, str]
Array = NDArray[Any]


def plain(prediction: Array, noise: Array | None, state: Array, step: Any) -> Array:
    """The same step in plain NumPy, sums in float64: the yardstick for rounding."""
    one = np.float32
    if len(prediction) == 1:
        guided = prediction[0].astype(one)
    else:
        unconditional, conditional = prediction.astype(one)
        guided = unconditional + step["guidance"] * (conditional - unconditional)
        phi = step["rescale"]
        if phi:
            ratio = conditional.std(-1, ddof=1, keepdims=True) / guided.std(
                -1, ddof=1, keepdims=True
            )
            guided = guided * (phi * ratio + (one(1) - phi))
    order = int(step["order"])
    rows = []
    for weights in step["weights"][:order]:
        total = np.zeros(guided.shape)
        for weight, latent in zip(weights[:order], state, strict=False):
            total = total + weight * latent
        total = total + weights[5] * guided
        if noise is not None:
            total = total + weights[6] * noise
        rows.append(total)
    result: Array = np.stack(rows).astype(one)
    return result


def run(
    bench: Bench, prediction: Array, noise: Array | None, state: Array, steps: Array, index: int
) -> tuple[Array, Any]:
    """The state after both kernels, and the cursor."""
    kernels, dtype = bench
    rows, images, elements = prediction.shape
    now = cursor(len(steps))
    now["index"] = index
    counter, table = kernels.put(now), kernels.put(steps)
    predicted, latents = kernels.put(prediction.astype(dtype)), kernels.put(state)
    fresh = kernels.put(noise) if noise is not None else 0
    partial = kernels.poisoned([guided_step.partial_bytes(elements, images)], np.uint8)
    kernels.run(
        "guidance_statistics",
        guided_step.statistics_launch(elements, images),
        *(counter, table, predicted, partial, elements, rows),
    )
    kernels.run(
        "guided_step",
        guided_step.launch(elements, images),
        *(counter, table, predicted, fresh, partial, latents, elements, rows),
    )
    result = kernels.get(latents, state.shape, np.float32)
    counted = kernels.get(counter, [1], CURSOR)[0]
    kernels.clear()
    return result, counted


def case(
    seed: int, order: int, rows: int, images: int, elements: int, phi: float, draws: bool
) -> tuple[Array, Array, Array, Array]:
    """Prediction, noise [3 draws], state [5, …] and a table of four steps."""
    rng = np.random.default_rng(seed)
    prediction = rng.normal(0.3, 1, (rows, images, elements)).astype(np.float16)
    state = rng.normal(0, 10, (5, images, elements)).astype(np.float32)
    noise = rng.normal(size=(3, images, elements)).astype(np.float32)
    weights = rng.normal(size=(4, order, order + 2))
    if not draws:
        weights[..., -1] = 0
    steps = step_table(np.ones(4), weights, [False, draws, draws, draws], 7.5, phi)
    return prediction, noise, state, steps


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("rows", "phi"), [(1, 0.7), (2, 0.0), (2, 0.7)])
@pytest.mark.parametrize(
    ("images", "elements", "draws"), [(1, 257, True), (2, 2050, True), (3, 255, False)]
)
def test_a_step_is_its_reference(
    bench: Bench, order: int, rows: int, phi: float, images: int, elements: int, draws: bool
) -> None:
    prediction, noise, state, steps = case(order, order, rows, images, elements, phi, draws)
    row = noise[1] if draws else None  # Step 2 is the second that draws.
    got, counted = run(bench, prediction, noise if draws else None, state, steps, 2)
    truth = guided_step.reference(prediction, row, state, steps[2])
    simple = plain(prediction, row, state, steps[2])
    assert np.abs(got[:order] - truth).max() <= tolerance(simple, truth)
    np.testing.assert_array_equal(got[order:], state[order:])  # Beyond K nothing is touched.
    assert counted["index"] == 3
    assert counted["arrived"] == 0
    assert counted["bad"] == ALL_FINITE


@given(
    elements=st.integers(2, 5000),
    images=st.integers(1, 3),
    order=st.integers(1, 5),
    phi=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_is_its_reference(
    bench: Bench, elements: int, images: int, order: int, phi: float, seed: int
) -> None:
    prediction, noise, state, steps = case(seed, order, 2, images, elements, phi, True)
    got, _ = run(bench, prediction, noise, state, steps, 1)
    truth = guided_step.reference(prediction, noise[0], state, steps[1])
    simple = plain(prediction, noise[0], state, steps[1])
    assert np.abs(got[:order] - truth).max() <= tolerance(simple, truth)


def test_statistics_hold_where_a_sum_of_squares_would_cancel(bench: Bench) -> None:
    """Means far from zero, and different from chunk to chunk."""
    prediction, noise, state, steps = case(5, 1, 2, 1, 6000, 1.0, True)
    prediction[..., :2048] += 100
    got, _ = run(bench, prediction, noise, state, steps, 1)
    truth = guided_step.reference(prediction, noise[0], state, steps[1])
    simple = plain(prediction, noise[0], state, steps[1])
    assert np.abs(got[:1] - truth).max() <= tolerance(simple, truth)


def test_a_batch_equals_its_images(bench: Bench) -> None:
    prediction, noise, state, steps = case(3, 2, 2, 3, 2100, 0.7, True)
    together, _ = run(bench, prediction, noise, state, steps, 1)
    for i in range(3):
        one = slice(i, i + 1)
        alone, _ = run(bench, prediction[:, one], noise[:, one], state[:, one], steps, 1)
        np.testing.assert_array_equal(alone, together[:, one])


def test_the_order_of_threads_and_blocks_does_not_matter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = case(4, 3, 2, 2, 4100, 0.7, True)
    forward, _ = run(bench, *arguments, 1)
    monkeypatch.setenv("HOST_CUDA_ORDER", "reverse")
    backward, counted = run(bench, *arguments, 1)
    np.testing.assert_array_equal(forward, backward)
    assert counted["index"] == 2


def test_a_latent_that_is_not_finite_is_noted(bench: Bench) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        prediction, noise, state, steps = case(6, 1, 1, 2, 700, 0, True)
        prediction[0, 1, 699] = bad
        _, counted = run(bench, prediction, noise, state, steps, 2)
        assert counted["bad"] == 2


def test_a_zero_weight_takes_nothing_of_a_poisoned_latent(bench: Bench) -> None:
    prediction, _, state, steps = case(7, 2, 2, 1, 300, 0, False)
    steps["weights"][:, :, 1] = 0
    state[1:] = np.nan
    got, counted = run(bench, prediction, None, state, steps, 0)
    assert np.isfinite(got[:2]).all()
    assert counted["bad"] == ALL_FINITE


def test_after_the_last_evaluation_nothing_is_touched(bench: Bench) -> None:
    prediction, noise, state, steps = case(8, 2, 2, 1, 300, 0.7, True)
    got, counted = run(bench, prediction, noise, state, steps, 4)
    np.testing.assert_array_equal(got, state)
    assert counted["index"] == 4

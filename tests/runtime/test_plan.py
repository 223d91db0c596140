"""Steps and plans: what may be in them, and how they act on latents."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.runtime.plan import Latents, Plan, Step, advance
from diffusion_rt.runtime.samplers import SAMPLERS, make_plan
from support.schedulers import record

SHAPE = (2, 4, 5, 7)
samplers = st.sampled_from(sorted(SAMPLERS))


def step(**changes: Any) -> Step:
    settings_: dict[str, Any] = {
        "timestep": 500.0,
        "sigma": 2.0,
        "c_in": 0.5,
        "c_skip": 1.0,
        "c_out": -2.0,
        "noise": True,
        "matrix": np.array([[0.5, 0.25, 0.125, 3.0], [1.0, 0.0, 0.0, 0.0]]),
    }
    return Step(**(settings_ | changes))


def normal(seed: int, *shape: int) -> Latents:
    return np.random.default_rng(seed).standard_normal(shape or SHAPE).astype(np.float32)


def test_a_step_is_its_formula() -> None:
    state, guided, noise = normal(1, 2, *SHAPE), normal(2), normal(3)
    q = state[0] - 2 * guided
    after = advance(state.copy(), guided, noise, step())
    assert after.dtype == np.float32
    np.testing.assert_allclose(
        after[0], 0.5 * state[0] + 0.25 * state[1] + 0.125 * q + 3 * noise, rtol=1e-5, atol=1e-5
    )
    assert np.array_equal(after[1], state[0])


def test_advance_changes_the_stack_and_nothing_else() -> None:
    state, guided, noise = normal(1, 2, *SHAPE), normal(2), normal(3)
    before = guided.copy(), noise.copy()
    assert advance(state, guided, noise, step()) is state
    for array, copy in zip((guided, noise), before, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("size", [1, 255, 1000, 16384, 16385, 40_000])
def test_a_step_is_its_formula_at_any_size(size: int) -> None:
    """Poisoned with NaN where nothing may be read; past one block of the sums."""
    matrix = np.array([[0.5, 0.0, 0.125, 3.0], [1.0, 0.0, 0.0, 0.0]])
    state, guided, noise = normal(1, 2, size), normal(2, size), normal(3, size)
    state[1] = np.nan
    first = state[0].astype(np.float64)
    wanted = (0.5 + 0.125) * first - 0.25 * guided.astype(np.float64) + 3 * noise.astype(np.float64)
    after = advance(state, guided, noise, step(matrix=matrix))
    assert np.array_equal(after[0], wanted.astype(np.float32))
    assert np.array_equal(after[1], first.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(sampler=samplers, steps=st.integers(2, 12), data=st.data())
def test_a_batch_equals_its_images_to_the_bit(
    sampler: str, steps: int, data: st.DataObject
) -> None:
    plan = make_plan(record(), sampler=sampler, steps=steps)
    one = data.draw(st.sampled_from(plan.steps))
    state, guided = normal(1, plan.order, *SHAPE), normal(2)
    noise = normal(3) if one.noise else None
    whole = advance(state.copy(), guided, noise, one)
    for i in range(SHAPE[0]):
        part = slice(i, i + 1)
        alone = advance(
            state[:, part].copy(), guided[part], None if noise is None else noise[part], one
        )
        assert np.array_equal(whole[:, part], alone)


@settings(max_examples=30, deadline=None)
@given(sampler=samplers, steps=st.integers(2, 12), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_plans_superpose(sampler: str, steps: int, a: float, b: float) -> None:
    plan = make_plan(record(), sampler=sampler, steps=steps)

    def run(seeds: list[tuple[float, int]]) -> Latents:
        """The result of one mixture of noises and predictions."""

        def mix(place: int) -> Latents:
            parts = [w * normal(100 * seed + place) for w, seed in seeds]
            mixture: Latents = np.sum(parts, axis=0).astype(np.float32)
            return mixture

        state = plan.first(mix(0))
        for i, one in enumerate(plan.steps, start=1):
            state = advance(state, mix(i), mix(-i % 100) if one.noise else None, one)
        end: Latents = state[0]
        return end

    mixed, parts = run([(a, 1), (b, 2)]), a * run([(1, 1)]) + b * run([(1, 2)])
    scale = 1 + max(np.abs(run([(1, 1)])).max(), np.abs(run([(1, 2)])).max())
    assert np.abs(mixed - parts).max() < 2e-5 * scale * (1 + abs(a) + abs(b))


@settings(max_examples=60, deadline=None)
@given(sampler=samplers, steps=st.integers(2, 15), data=st.data())
def test_the_parts_of_a_cut_make_the_whole(sampler: str, steps: int, data: st.DataObject) -> None:
    plan = make_plan(record(), sampler=sampler, steps=steps)
    cut = data.draw(st.integers(1, len(plan.steps) - 1))

    def run(part: Plan, state: Latents, first: int) -> Latents:
        for i, one in enumerate(part.steps, start=first):
            state = advance(state, normal(i), normal(1000 + i) if one.noise else None, one)
        return state

    whole = run(plan, plan.first(normal(0)), 1)
    half = run(plan.between(0, cut), plan.first(normal(0)), 1)
    assert np.array_equal(run(plan.between(cut), half, cut + 1), whole)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_tables_say_what_the_steps_say(sampler: str) -> None:
    plan = make_plan(record(), sampler=sampler, steps=7)
    count, order = len(plan.steps), plan.order
    assert plan.timesteps.dtype == plan.coefficients.dtype == np.float32
    assert plan.timesteps.tolist() == [np.float32(s.timestep) for s in plan.steps]
    assert plan.coefficients.shape == (count, 3)
    assert plan.matrices.shape == plan.weights.shape == (count, order, order + 2)
    assert plan.draws.tolist() == [s.noise for s in plan.steps]
    for one, draws in zip(plan.steps, plan.draws, strict=True):
        assert draws == one.matrix[:, -1].any()
        with pytest.raises(ValueError, match="read-only"):
            one.matrix[0, 0] = 1
        # q is written out: the weights are the matrix applied to c_skip S[0] + c_out guided.
        spread = np.eye(order + 2)
        spread[order, order] = one.c_out
        spread[order, 0] = one.c_skip
        np.testing.assert_allclose(one.weights, one.matrix @ spread, rtol=1e-12, atol=1e-12)


def test_a_plan_starts_from_noise_or_from_a_picture() -> None:
    plan = make_plan(record(), sampler="dpmpp-2m", steps=9, begin=4)
    noise, encoded = normal(1), normal(2)
    state = plan.first(noise)
    assert state.shape == (2, *SHAPE)
    assert state.dtype == np.float32
    assert np.array_equal(state[0], noise)
    assert not state[1].any()
    alpha, sigma = plan.picture
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert sigma / alpha == pytest.approx(plan.steps[0].sigma)
    state = plan.first(noise, encoded)
    np.testing.assert_allclose(state[0], alpha * encoded + sigma * noise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": False},
        {"matrix": np.zeros((2, 3))},
        {"matrix": np.zeros((6, 8))},
        {"matrix": np.array([[np.nan, 0, 0]])},
        {"c_in": np.inf},
        {"timestep": np.nan},
        {"sigma": -1.0},
    ],
)
def test_a_step_cannot_be_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        step(**wrong)


def test_a_plan_cannot_be_wrong() -> None:
    for steps in ((), (step(), step(matrix=np.array([[1.0, 0.0, 0.0]])))):
        with pytest.raises(AssertionError):
            Plan(sampler="euler", start=1.0, picture=(0.0, 1.0), steps=steps)
    with pytest.raises(AssertionError):
        Plan(sampler="euler", start=np.inf, picture=(0.0, 1.0), steps=(step(),))


def test_noise_is_given_exactly_where_it_is_drawn() -> None:
    state, guided, noise = normal(1, 2, *SHAPE), normal(2), normal(3)
    with pytest.raises(AssertionError):
        advance(state, guided, None, step())
    quiet = step(noise=False, matrix=step().matrix * [1, 1, 1, 0])
    with pytest.raises(AssertionError):
        advance(state, guided, noise, quiet)

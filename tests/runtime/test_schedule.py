"""Schedules against diffusers' and scipy's, and against what no schedule may be."""

import inspect
import math
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
from diffusers.schedulers import AysSchedules
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.schedule import (
    AYS_SDXL,
    DISTILLED,
    EULER_GRID,
    MIDPOINT_GRID,
    MULTISTEP_GRID,
    SOLVER_GRID,
    WHOLE_GRID,
    Grid,
    Schedule,
    align_your_steps,
    beta_quantile,
    training_alphas_cumprod,
)
from support.schedulers import record

# NumPy's opinion of how diffusers makes arrays of tensors, and of logarithms of zero
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning"
)

BETAS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 999},
    {"trained_betas": tuple(1e-4 * (i + 1) for i in range(37)), "num_train_timesteps": 37},
]
GRIDS = {
    "EulerDiscreteScheduler": EULER_GRID,
    "KDPM2DiscreteScheduler": MIDPOINT_GRID,
    "DDIMScheduler": WHOLE_GRID,
    "DPMSolverMultistepScheduler": MULTISTEP_GRID,
    "UniPCMultistepScheduler": SOLVER_GRID,
}


def stock(name: str, schedule: Any, **config: Any) -> Any:
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    shared = {n: getattr(schedule, n) for n in type(schedule).__slots__ if n in known}
    return kind(**(shared | config))


@pytest.mark.parametrize("betas", BETAS)
def test_tables_are_those_of_diffusers_to_the_bit(betas: dict[str, Any]) -> None:
    theirs = stock("DDIMScheduler", record(**betas)).alphas_cumprod.numpy()
    assert np.array_equal(training_alphas_cumprod(record(**betas)).astype(np.float32), theirs)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr_leaves_no_signal_and_the_first_level(betas: dict[str, Any]) -> None:
    plain = training_alphas_cumprod(record(**betas))
    schedule = record(**betas, rescale_betas_zero_snr=True)
    rescaled = training_alphas_cumprod(schedule)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-12)
    assert (np.diff(rescaled) < 0).all()
    assert Schedule(schedule).sigmas[-1] == pytest.approx(4096, rel=1e-6)
    theirs = stock("DDIMScheduler", schedule).alphas_cumprod.numpy()
    np.testing.assert_allclose(rescaled, theirs, rtol=0, atol=5e-6)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["DDIMScheduler", "DPMSolverMultistepScheduler"]),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    steps=st.integers(1, 400),
    offset=st.sampled_from([0, 1]),
)
def test_spacings_are_those_of_diffusers(name: str, spacing: str, steps: int, offset: int) -> None:
    schedule = record(timestep_spacing=spacing, steps_offset=offset)
    scheduler = stock(name, schedule)
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()
    # Rounding can give diffusers' trailing spacing one step too many, at timestep -1.
    assert len(theirs) == steps or (spacing == "trailing" and theirs[-1] == -1)
    assert Schedule(schedule).space(GRIDS[name], steps, spacing).tolist() == theirs[:steps]


@pytest.mark.parametrize("betas", BETAS[:3])
@pytest.mark.parametrize("family", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", [n for n in GRIDS if n != "DDIMScheduler"])
def test_families_of_sigmas_are_those_of_diffusers(
    name: str, family: str, betas: dict[str, Any]
) -> None:
    schedule = record(**betas, timestep_spacing="linspace")
    scheduler = stock(name, schedule, **{f"use_{family}_sigmas": True})
    for steps in (1, 10, 33):
        scheduler.set_timesteps(steps)
        levels = Schedule(schedule).levels(
            GRIDS[name], steps=steps, spacing="linspace", sigmas=family
        )
        sigmas, timesteps = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
        if scheduler.order == 2:
            sigmas = np.concatenate([sigmas[:1], sigmas[1:-1:2]])
            timesteps = np.concatenate([timesteps[:1], timesteps[2::2]])
        np.testing.assert_allclose(levels.sigmas, sigmas, rtol=2e-6)
        np.testing.assert_allclose(levels.timesteps, timesteps, rtol=0, atol=2e-3)


@settings(max_examples=100, deadline=None)
@given(shape=st.sampled_from([0.3, 0.6, 0.9]), share=st.floats(0, 1))
def test_quantiles_of_the_beta_distribution(shape: float, share: float) -> None:
    (ours,) = beta_quantile(np.array([share]), shape)
    assert ours == pytest.approx(scipy.stats.beta.ppf(share, shape, shape), rel=1e-9, abs=1e-15)


def test_align_your_steps_gives_its_ten_steps_and_bends_in_log_sigma() -> None:
    np.testing.assert_allclose(align_your_steps(10), AYS_SDXL, rtol=1e-12)
    np.testing.assert_allclose(
        align_your_steps(10)[:-1], AysSchedules["StableDiffusionXLSigmas"][:-1], rtol=1e-12
    )
    twenty = align_your_steps(20)
    np.testing.assert_allclose(twenty[::2], AYS_SDXL, rtol=1e-12)
    np.testing.assert_allclose(twenty[1::2] ** 2, twenty[:-1:2] * twenty[2::2], rtol=1e-9)
    levels = Schedule(record()).levels(EULER_GRID, steps=10, spacing="leading", sigmas="ays")
    np.testing.assert_allclose(levels.sigmas, [*AYS_SDXL[:-1], 0.0], rtol=1e-12)
    # The timesteps that NVIDIA publishes beside them, rounded to whole ones
    published = AysSchedules["StableDiffusionXLTimesteps"]
    assert np.abs(levels.timesteps - published).max() < 1.5


def test_sgm_uniform_is_even_in_time_and_stops_before_its_end() -> None:
    schedule = Schedule(record())
    levels = schedule.levels(SOLVER_GRID, steps=9, spacing="leading", sigmas="sgm-uniform")
    np.testing.assert_allclose(levels.timesteps, 999 - 111 * np.arange(9), rtol=1e-12)
    np.testing.assert_allclose(levels.sigmas[:-1], schedule.sigmas[999 - 111 * np.arange(9)])
    assert levels.sigmas[-1] == 0


@settings(max_examples=100, deadline=None)
@given(timestep=st.floats(0, 999))
def test_timesteps_come_back_from_their_sigmas(timestep: float) -> None:
    schedule = Schedule(record())
    sigma = np.exp(np.interp(timestep, np.arange(1000), np.log(schedule.sigmas)))
    assert schedule.timestep_at(np.array([sigma]))[0] == pytest.approx(timestep, abs=2e-3)


def test_timesteps_stay_on_the_schedule() -> None:
    found = Schedule(record()).timestep_at(np.array([0.0, 1e-9, 1e5]))
    assert found.tolist() == [0, 0, 999]


def test_distilled_spacing_is_that_of_lcm() -> None:
    scheduler = stock("LCMScheduler", record())
    for steps in (1, 2, 4, 7, 8, 50):
        scheduler.set_timesteps(steps)
        ours = Schedule(record()).space(WHOLE_GRID, steps, DISTILLED)
        assert ours.tolist() == scheduler.timesteps.tolist()
    with pytest.raises(BadInput, match="steps=51"):
        Schedule(record()).space(WHOLE_GRID, 51, DISTILLED)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(1, 1000),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    grid=st.sampled_from(list(GRIDS.values())),
    family=st.sampled_from([None, "karras", "exponential", "beta", "sgm-uniform", "ays"]),
)
def test_levels_fall_and_stay_on_the_schedule(
    steps: int, spacing: str, grid: Grid, family: str | None
) -> None:
    try:
        levels = Schedule(record()).levels(grid, steps=steps, spacing=spacing, sigmas=family)
    except BadInput:
        assume(False)
    assert len(levels.timesteps) == steps
    assert len(levels.sigmas) == steps + 1
    assert (np.diff(levels.sigmas) < 0).all()
    assert (np.diff(levels.timesteps) <= 0).all()
    assert levels.timesteps.min() >= 0
    assert levels.timesteps.max() <= 999
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps=1000000000"),
        ({"beta_start": math.nan}, "beta_start=nan"),
        ({"beta_end": 1.5}, "beta_end=1.5"),
        ({"beta_start": -1e-3}, "beta_start=-0.001"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"interpolation_type": "cubic"}, "interpolation_type='cubic'"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type='one'"),
        ({"steps_offset": -1}, "steps_offset=-1"),
        ({"steps_offset": 1000}, "steps_offset=1000"),
        ({"trained_betas": (0.1, 0.2)}, "2 trained_betas for 1000"),
        ({"trained_betas": (2.0,) * 1000}, "not all between 0 and 1"),
        ({"trained_betas": (1e-12,) * 1000}, "starts without noise"),
        ({"trained_betas": (0.9,) * 1000}, "ends without signal"),
    ],
)
def test_a_record_that_is_no_schedule_is_bad_input(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Schedule(replace(record(), **changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)

"""Samplers by name, by what they promise of any model, and by formulas written again."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.plan import Plan
from diffusion_rt.runtime.samplers import SAMPLERS, make_plan, sampler_name
from support.schedulers import record

Vector = NDArray[np.float64]

DETERMINISTIC = sorted(set(SAMPLERS) - {"euler-a", "dpm2-a", "dpmpp-2m-sde", "dpmpp-3m-sde"}
                       - {"dpmpp-2s-a", "ddpm", "lcm"})  # fmt: skip
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SAMPLERS),
    ("euler", {"s_churn": 10.0}),
    ("pndm", {"skip_prk_steps": False}),
    ("ddim", {"eta": 1.0}),
    ("tcd", {"eta": 0.3}),
    *(("lms", {"order": order}) for order in (1, 2, 3)),
    *((name, {"order": 3}) for name in ("deis", "unipc", "dpmpp-2s")),
]
ORDERS = {
    **dict.fromkeys(("euler", "euler-a", "ddim", "ddpm", "lcm", "tcd"), 1),
    **dict.fromkeys(("dpmpp-2m", "dpmpp-2m-sde", "dpmpp-2s", "dpmpp-2s-a"), 2),
    **dict.fromkeys(("dpm2", "dpm2-a", "heun", "deis"), 2),
    **dict.fromkeys(("dpmpp-3m", "dpmpp-3m-sde", "unipc"), 3),
    **dict.fromkeys(("lms", "pndm"), 4),
}


def shares(plan: Plan) -> list[Vector]:
    """S[0] before each evaluation and at the end, for a model that knows the picture.

    As shares of [the picture, the noise it started with, each draw]; the first is what it started
    from: the picture with noise added.
    """
    width = 2 + len(plan.steps)
    picture, start = np.eye(width)[:2]
    state = np.zeros((plan.order, width))
    state[0] = plan.picture[0] * picture + plan.picture[1] * start
    seen = [state[0]]
    for i, step in enumerate(plan.steps):
        state = step.matrix @ np.vstack([state, picture, np.eye(width)[2 + i]])
        seen.append(state[0])
    return seen


@settings(max_examples=200, deadline=None)
@given(
    asked=st.sampled_from(SETTINGS),
    steps=st.sampled_from([1, 2, 3, 4, 5, 8, 10, 20, 40]),
    begin=st.integers(0, 3),
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    family=st.sampled_from([None, "karras", "exponential", "beta", "sgm-uniform", "ays"]),
    zero_snr=st.booleans(),
)
def test_a_model_that_knows_the_picture_is_followed_to_it(
    asked: tuple[str, dict[str, Any]],
    steps: int,
    begin: int,
    prediction: str,
    family: str | None,
    zero_snr: bool,
) -> None:
    """Every evaluation sees the picture with just the noise that the step says, and no other."""
    name, options = asked
    takes = SAMPLERS[name].takes
    # v mixes signal and noise in other shares at each level, so sums of past v are only close.
    assume(name != "pndm" or (prediction == "epsilon" and not zero_snr))
    assume(options.get("skip_prk_steps", True) or steps - begin in (4, 8, 10, 20))
    # Churn raises the noise after the model was asked: see SAMPLERS.md.
    assume("s_churn" not in options or prediction == "sample")
    assume(begin < steps)
    assume("sigmas" in takes or not zero_snr or prediction != "epsilon")
    plan = make_plan(
        record(prediction_type=prediction, rescale_betas_zero_snr=zero_snr),
        sampler=name,
        steps=steps,
        begin=begin,
        sigmas=family if "sigmas" in takes else None,
        **options,
    )
    # The boundary conditions of LCM leave a trace of the latent in what is denoised.
    near = 2e-4 if name == "lcm" else 1e-6
    *before, last = shares(plan)
    for step, share in zip(plan.steps, before, strict=True):
        alpha = 1 / math.hypot(1, step.sigma) if step.c_in == 1 else 1.0
        if step.sigma == 0 or not math.isfinite(step.sigma):
            continue
        assert share[0] == pytest.approx(alpha, abs=near)
        assert np.linalg.norm(share[1:]) == pytest.approx(alpha * step.sigma, rel=1e-4, abs=near)
    if SAMPLERS[name].final == "zero" and name != "tcd":
        assert last[0] == pytest.approx(1, abs=near)
        assert np.linalg.norm(last[1:]) < near


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_and_places_are_no_more_than_needed(name: str) -> None:
    plan = make_plan(record(), sampler=name, steps=11)
    assert plan.order == ORDERS[name]
    double = {"heun", "dpm2", "dpm2-a", "dpmpp-2s-a"}
    assert len(plan.steps) == (21 if name in double else 12 if name == "pndm" else 11)
    if name in DETERMINISTIC:
        assert not plan.draws.any()
        assert not plan.matrices[:, :, -1].any()
    else:
        assert plan.draws.sum() == (11 if name == "ddpm" else 10)
    used = np.abs(plan.matrices[:, 0, :-2]).max(0)
    assert used.all(), "a latent is carried that no step reads"


@pytest.mark.parametrize(("sampler", "order", "least"), [("unipc", 3, 4), ("deis", 3, 3)])
def test_third_order_carries_one_more(sampler: str, order: int, least: int) -> None:
    assert make_plan(record(), sampler=sampler, steps=9, order=order).order == least


def test_runge_kutta_start_carries_five() -> None:
    plan = make_plan(record(), sampler="pndm", steps=20, skip_prk_steps=False)
    assert (plan.order, len(plan.steps)) == (5, 29)


# ---- convergence ---------------------------------------------------------------------------------

SPREAD = 0.7


def one_cloud(x: float, sigma: float) -> float:
    """The denoised latent where pictures are normal about 0 with deviation SPREAD."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def two_clouds(x: float, sigma: float) -> float:
    """The same where half of them are normal about 1 and half about -1."""
    width = SPREAD**2 + sigma**2
    return (x * SPREAD**2 + sigma**2 * math.tanh(x / width)) / width


def ended(
    sampler: str, steps: int, denoise: Callable[[float, float], float] = one_cloud, **options: Any
) -> float:
    """Where a plan without noise takes a latent of 1 at sigma 8 by sigma 0.1."""
    sigmas = np.geomspace(8, 0.1, steps + 1).tolist()
    plan = make_plan(record(), sampler=sampler, steps=steps, custom_sigmas=sigmas, **options)
    state = np.zeros(plan.order)
    state[0] = plan.picture[0]
    for step in plan.steps:
        signal = 1 / math.hypot(1, step.sigma) if step.c_in == 1 else 1.0
        denoised = denoise(state[0] / signal, step.sigma)
        state = step.matrix @ [*state, denoised, 0.0]
    return float(state[0]) / (1 / math.hypot(1, 0.1) if plan.steps[0].c_in == 1 else 1.0)


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("dpm2", {}, 2),
        ("lms", {}, 2),
        ("dpmpp-2m", {}, 2),
        ("dpmpp-3m", {}, 2),
        ("dpmpp-2s", {}, 2),
        ("dpmpp-2s", {"order": 3}, 2),
        ("deis", {}, 2),
        ("deis", {"order": 3}, 2),
        ("unipc", {}, 2),
        ("unipc", {"order": 3}, 2),
    ],
)
def test_deterministic_samplers_converge_to_the_solution(
    sampler: str, options: dict[str, Any], order: int
) -> None:
    """Steps of higher order begin, and some end, with lower ones: the whole is of second order."""
    true = math.hypot(SPREAD, 0.1) / math.hypot(SPREAD, 8)
    coarse, fine = (abs(ended(sampler, n, **options) / true - 1) for n in (120, 240))
    assert fine < (1e-2 if order == 1 else 1e-4)
    assert coarse / fine > 0.8 * 2**order


def test_the_third_order_for_the_sde_is_better_than_the_second() -> None:
    """Without noise both follow the drift; diffusers' third order is worse than its second."""
    true = ended("dpmpp-2m-sde", 1000, two_clouds)
    for steps in (30, 60, 120):
        ends = [ended(f"dpmpp-{n}m-sde", steps, two_clouds) for n in (2, 3)]
        second, third = np.abs(np.array(ends) / true - 1)
        assert third < second / 2


# ---- formulas of k-diffusion, in float64 and in its own scaling ------------------------------


def denoiser(plan: Plan) -> Callable[[Vector, float], Vector]:
    """A smooth model of epsilon as k-diffusion wraps it; timesteps are told by sigma."""
    told = {step.sigma: step.timestep for step in plan.steps}
    known = np.array(sorted(told))

    def denoise(x: Vector, sigma: float) -> Vector:
        nearest = float(known[np.abs(known - sigma).argmin()])
        assert nearest == pytest.approx(sigma, rel=1e-9)
        return x - sigma * epsilon(x / math.hypot(sigma, 1), told[nearest])

    return denoise


def epsilon(x: Vector, timestep: float) -> Vector:
    return np.tanh(x + 0.3 * np.roll(x, 1) + math.sin(timestep / 150)) + 0.5 * x


def carried(plan: Plan, start: Vector, noise: list[Vector]) -> Vector:
    """The end of a plan carried in float64."""
    state = np.zeros((plan.order, *start.shape))
    state[0] = plan.start * start
    drawn = iter(noise)
    for step in plan.steps:
        guided = epsilon(step.c_in * state[0], step.timestep)
        fresh = next(drawn) if step.noise else np.zeros_like(start)
        state = np.tensordot(step.weights, np.stack([*state, guided, fresh]), 1)
    end: Vector = state[0]
    return end


def levels(plan: Plan) -> list[float]:
    """The noise levels of a plan without those between steps."""
    sigmas = [step.sigma for step in plan.steps]
    return [*(sigmas[::2] if len(sigmas) > 20 else sigmas), 0.0]


def ancestral(sigma: float, after: float) -> tuple[float, float]:
    up = min(after, math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    return math.sqrt(after**2 - up**2), up


@pytest.mark.parametrize("sigmas", [None, "karras", "sgm-uniform"])
def test_dpmpp_2s_a_is_that_of_k_diffusion(sigmas: str | None) -> None:
    plan = make_plan(record(), sampler="dpmpp-2s-a", steps=20, sigmas=sigmas)
    rng = np.random.default_rng(0)
    start, *noise = rng.standard_normal((21, 50))
    denoise, drawn = denoiser(plan), iter(noise)
    x = plan.start * start
    path = levels(plan)
    for sigma, after in pairwise(path):
        down, up = ancestral(sigma, after)
        denoised = denoise(x, sigma)
        if down == 0:
            x = x + (x - denoised) / sigma * (down - sigma)
        else:
            t, t_next = -math.log(sigma), -math.log(down)
            h = t_next - t
            s = t + h / 2
            middle = math.exp(-s) / math.exp(-t) * x - math.expm1(-h / 2) * denoised
            denoised = denoise(middle, math.exp(-s))
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * denoised
        if after > 0:
            x = x + next(drawn) * up
    np.testing.assert_allclose(carried(plan, start, noise), x, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sigmas", [None, "karras", "ays"])
def test_dpmpp_3m_sde_is_that_of_k_diffusion(sigmas: str | None) -> None:
    """There, eta = 1 and s_noise = 1; diffusers differs, see SAMPLERS.md."""
    plan = make_plan(record(), sampler="dpmpp-3m-sde", steps=19, sigmas=sigmas)
    rng = np.random.default_rng(1)
    start, *noise = rng.standard_normal((20, 50))
    denoise, drawn = denoiser(plan), iter(noise)
    path = levels(plan)
    x = math.hypot(path[0], 1) * start
    past: list[tuple[Vector, float]] = []  # denoised and step length, the latest first
    for sigma, after in pairwise(path):
        denoised = denoise(x, sigma)
        if after == 0:
            x = denoised
            break
        h = math.log(sigma / after)
        twice = 2 * h
        x = math.exp(-twice) * x - math.expm1(-twice) * denoised
        phi_2 = math.expm1(-twice) / twice + 1
        if len(past) > 1:
            (one, h_1), (two, h_2) = past[:2]
            r0, r1 = h_1 / h, h_2 / h
            near, far = (denoised - one) / r0, (one - two) / r1
            slope = near + (near - far) * r0 / (r0 + r1)
            bend = (near - far) / (r0 + r1)
            x = x + phi_2 * slope - (phi_2 / twice - 0.5) * bend
        elif past:
            # Where only one is known, k-diffusion takes phi_2 and diffusers the midpoint form.
            one, h_1 = past[0]
            x = x - math.expm1(-twice) / 2 * (denoised - one) / (h_1 / h)
        x = x + next(drawn) * after * math.sqrt(-math.expm1(-twice))
        past.insert(0, (denoised, h))
    np.testing.assert_allclose(carried(plan, start, noise), x, rtol=1e-8, atol=1e-8)


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stable"),
    [
        *((name, name) for name in SAMPLERS),
        ("Euler a", "euler-a"),
        ("DPM++ 2M", "dpmpp-2m"),
        ("DPM++ 2M Karras", "dpmpp-2m-karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp-2m-sde-exponential"),
        ("DPM++ 3M SDE SGM Uniform", "dpmpp-3m-sde-sgm-uniform"),
        ("DPM++ 2S a Karras", "dpmpp-2s-a-karras"),
        ("DPM2 a", "dpm2-a"),
        ("LMS Karras", "lms-karras"),
        ("PLMS", "pndm"),
        ("UniPC", "unipc"),
        ("DDIM", "ddim"),
        ("LCM", "lcm"),
        ("dpmpp_2m_sde", "dpmpp-2m-sde"),
        ("euler_ancestral", "euler-a"),
        ("dpm_2_ancestral", "dpm2-a"),
        ("uni_pc", "unipc"),
        ("dpm++-2m", "dpmpp-2m"),
        ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("HeunDiscreteScheduler", "heun"),
        ("KDPM2DiscreteScheduler", "dpm2"),
        ("KDPM2AncestralDiscreteScheduler", "dpm2-a"),
        ("LMSDiscreteScheduler", "lms"),
        ("DPMSolverMultistepScheduler", "dpmpp-2m"),
        ("DPMSolverSinglestepScheduler", "dpmpp-2s"),
        ("DEISMultistepScheduler", "deis"),
        ("UniPCMultistepScheduler", "unipc"),
        ("PNDMScheduler", "pndm"),
        ("DDIMScheduler", "ddim"),
        ("DDPMScheduler", "ddpm"),
        ("LCMScheduler", "lcm"),
        ("TCDScheduler", "tcd"),
    ],
)
def test_names(name: str, stable: str) -> None:
    assert sampler_name(name) == stable
    assert sampler_name(stable) == stable


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("eulr", "euler"),
        ("DPM++ 2N", "dpmpp-2"),
        ("DPM++ 2M Karas", "dpmpp-2m-karras"),
        ("unipcc", "unipc"),
        ("DDIMSchedule", "ddim"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(BadInput) as caught:
        sampler_name(name)
    assert f"did you mean '{nearest}" in str(caught.value)


@pytest.mark.parametrize("name", ["", "☃" * 10_000, "nonsense"])
def test_a_name_like_none_is_answered_with_all(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        sampler_name(name)
    assert f"one of {', '.join(SAMPLERS)}" in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_a_name_or_bad_input(name: str) -> None:
    try:
        stable = sampler_name(name)
    except BadInput as error:
        stable, message = None, str(error)
    if stable is None:
        assert "\n" not in message
    else:
        assert sampler_name(stable) == stable


def test_a_family_of_sigmas_may_be_part_of_the_name() -> None:
    named = make_plan(record(), sampler="DPM++ 2M Karras", steps=9)
    apart = make_plan(record(), sampler="dpmpp-2m", sigmas="karras", steps=9)
    assert np.array_equal(named.matrices, apart.matrices)
    assert named.timesteps.tolist() == apart.timesteps.tolist()
    with pytest.raises(BadInput, match="means karras sigmas and sigmas=beta"):
        make_plan(record(), sampler="DPM++ 2M Karras", sigmas="beta", steps=9)


# ---- defaults ----------------------------------------------------------------------------------


def test_defaults_are_the_records() -> None:
    schedule = record(scheduler="DPMSolverMultistepScheduler", timestep_spacing="trailing")
    plan = make_plan(schedule, steps=4)
    assert plan.sampler == "dpmpp-2m"
    assert plan.timesteps.tolist() == [999, 749, 499, 249]
    karras = replace(schedule, use_karras_sigmas=True)
    asked = make_plan(schedule, steps=4, sigmas="karras")
    assert np.array_equal(make_plan(karras, steps=4).matrices, asked.matrices)
    # A spacing that is asked for is meant, and so are lists and samplers that know no Karras.
    spaced = make_plan(karras, steps=4, spacing="trailing")
    assert spaced.timesteps.tolist() == plan.timesteps.tolist()
    assert make_plan(karras, steps=2, timesteps=[9, 5]).timesteps.tolist() == [9, 5]
    ancestral = make_plan(karras, steps=4, sampler="euler-a")
    assert ancestral.timesteps.tolist() == [999, 749, 499, 249]


def test_the_start_is_that_of_the_scheduler() -> None:
    most = make_plan(record(), steps=20, spacing="trailing").start
    assert most == pytest.approx(14.6146, rel=1e-5)
    leading = make_plan(record(), steps=20, spacing="leading")
    assert leading.start == pytest.approx(math.hypot(leading.steps[0].sigma, 1))
    assert make_plan(record(), steps=20, sampler="dpmpp-2m").start == 1


def test_listed_timesteps_are_followed_by_ddim_one_by_one() -> None:
    plan = make_plan(record(), sampler="ddim", steps=1, timesteps=[999, 500, 3])
    assert plan.timesteps.tolist() == [999, 500, 3]
    assert shares(plan)[-1][0] == pytest.approx(1)


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": 0}, "steps=0 is out of range; give 1 to 1000"),
        ({"steps": -3}, "steps=-3"),
        ({"steps": 1001}, "steps=1001"),
        ({"steps": 2.5}, "steps=2.5 is no whole number"),
        ({"steps": True}, "steps=True"),
        ({"steps": 1000, "sampler": "dpmpp-2m"}, "at most 999"),
        ({"steps": 1000}, "past the last, 999"),
        ({"steps": 51, "sampler": "lcm"}, "steps=51 is more than the 50 of distillation"),
        ({"spacing": "leeding"}, "did you mean 'leading'"),
        ({"spacing": "trailing", "sampler": "lcm"}, "sampler lcm takes no spacing"),
        ({"spacing": "leading", "sampler": "dpmpp-2s"}, "sampler dpmpp-2s takes no spacing"),
        ({"sigmas": "karas"}, "did you mean 'karras'"),
        ({"sigmas": "karras", "sampler": "ddim"}, "sampler ddim takes no sigmas"),
        ({"custom_sigmas": [1.0, 0.0], "sampler": "tcd"}, "sampler tcd takes no sigmas"),
        ({"timesteps": [9, 5], "sampler": "pndm"}, "sampler pndm takes no timesteps"),
        ({"timesteps": [9, 5.5], "sampler": "ddim"}, "whole timesteps, not 5.5"),
        ({"timesteps": []}, "timesteps lists 0 values"),
        ({"timesteps": [5, 9]}, "timesteps lists 9 after 5; give falling numbers"),
        ({"timesteps": [5, 5]}, "timesteps lists 5 after 5"),
        ({"timesteps": [1000, 5]}, "timesteps lists 1000"),
        ({"timesteps": [5, -1]}, "timesteps lists -1"),
        ({"timesteps": [math.nan, 5]}, "timesteps lists nan"),
        ({"timesteps": range(1001, 0, -1)}, "timesteps lists 1001 values"),
        ({"custom_sigmas": [1.0]}, "sigmas lists 1 values"),
        ({"custom_sigmas": [1.0, 2.0]}, "sigmas lists 2 after 1"),
        ({"custom_sigmas": [math.inf, 0.0]}, "sigmas lists inf"),
        ({"custom_sigmas": [1.0, -1.0]}, "sigmas lists -1"),
        ({"custom_sigmas": [2.0, 1.0, 0.0], "sigmas": "beta"}, "exclude each other"),
        ({"custom_sigmas": [2.0, 1.0, 0.0], "timesteps": [5]}, "exclude each other"),
        ({"final_sigmas_type": "low"}, "final_sigmas_type='low'"),
        ({"final_sigmas_type": "zero", "sampler": "lms"}, "takes no final_sigmas_type"),
        ({"eta": 0.5}, "sampler euler takes no eta; leave it out, or try ddim"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta=1.5 is out of range; give 0 to 1"),
        ({"eta": math.nan, "sampler": "ddim"}, "eta=nan"),
        ({"s_churn": 1.0, "sampler": "heun"}, "sampler heun takes no s_churn"),
        ({"s_churn": -1.0}, "s_churn=-1.0"),
        ({"s_noise": math.inf}, "s_noise=inf"),
        ({"s_tmax": math.nan}, "s_tmax=nan"),
        ({"order": 2}, "sampler euler takes no order"),
        ({"order": 4, "sampler": "unipc"}, "order=4 is none of sampler unipc"),
        ({"order": True, "sampler": "unipc"}, "order=True"),
        ({"skip_prk_steps": False}, "takes no skip_prk_steps; leave it out, or try pndm"),
        ({"skip_prk_steps": False, "sampler": "pndm", "steps": 3}, "takes 4 steps or more, not 3"),
        ({"begin": 20}, "begin=20 is no step of 20; give 0 to 19"),
        ({"begin": -1}, "begin=-1"),
        ({"sampler": "ddim++"}, "did you mean 'ddim'"),
        ({"sampler": 3}, "sampler=3 is no name"),
    ],
)
def test_bad_input_names_the_setting_and_the_way_out(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(record(), **({"steps": 20} | asked))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sampler", "says"),
    [
        ({"scheduler": "EDMEulerScheduler"}, None, "comes with the scheduler 'EDMEulerScheduler'"),
        ({"prediction_type": "sample"}, "pndm", "no form for models that predict the sample"),
        ({"timestep_spacing": "uniform"}, "euler", "spacing='uniform'"),
        ({"beta_end": 3.0}, "euler", "beta_end=3.0"),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "ddim",
            "zero terminal SNR leaves no signal; try euler",
        ),
        (
            {
                "rescale_betas_zero_snr": True,
                "beta_schedule": "linear",
                "beta_end": 0.02,
                "timestep_spacing": "trailing",
            },
            "euler-1000",
            "not known",
        ),
    ],
)
def test_a_model_no_plan_can_be_made_for(
    changes: dict[str, Any], sampler: str | None, says: str
) -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(record(**changes), sampler=sampler, steps=20)
    assert says in str(caught.value)


def test_two_steps_on_one_level_are_refused() -> None:
    schedule = record(
        rescale_betas_zero_snr=True,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    with pytest.raises(BadInput, match="two steps of sampler dpmpp-2m on one noise level"):
        make_plan(schedule, sampler="dpmpp-2m", steps=1000)
    assert len(make_plan(schedule, sampler="ddpm", steps=1000).steps) == 1000


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_longest_runs_are_finite(name: str) -> None:
    steps = 50 if SAMPLERS[name].spacing == "distilled" else 999
    plan = make_plan(record(steps_offset=0), sampler=name, steps=steps)
    assert np.isfinite(plan.weights).all()
    assert np.abs(plan.weights).max() < 1e4

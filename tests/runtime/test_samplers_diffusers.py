"""Whole runs of every sampler against its scheduler in diffusers.

The measure is the scheduler's own error: how far its float32 run is from its float64 run. A plan,
carried in float32, may be twice as far from the latter.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from diffusion_rt.engines.manifest import ScheduleRecord
from diffusion_rt.runtime.samplers import make_plan
from support.schedulers import Stock, apart, planned, record

# NumPy's opinion of how diffusers makes arrays of tensors, and of logarithms of zero
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning"
)

MULTISTEP = "DPMSolverMultistepScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
CHURN = {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01}
# diffusers turns the sign of this half: see SAMPLERS.md.
THIRD_SDE = ("(2.0 * h) ** 2 - 0.5)", "(2.0 * h) ** 2 + 0.5)")

STOCK: dict[str, tuple[str, dict[str, Any], Stock]] = {
    "euler": ("euler", {}, Stock(scheduler="EulerDiscreteScheduler")),
    "euler churned": ("euler", CHURN, Stock(scheduler="EulerDiscreteScheduler", step=CHURN)),
    "euler-a": ("euler-a", {}, Stock(scheduler="EulerAncestralDiscreteScheduler")),
    "heun": ("heun", {}, Stock(scheduler="HeunDiscreteScheduler")),
    "dpm2": ("dpm2", {}, Stock(scheduler="KDPM2DiscreteScheduler")),
    "dpm2-a": ("dpm2-a", {}, Stock(scheduler="KDPM2AncestralDiscreteScheduler")),
    "lms": ("lms", {}, Stock(scheduler="LMSDiscreteScheduler")),
    "lms 2": ("lms", {"order": 2}, Stock(scheduler="LMSDiscreteScheduler", step={"order": 2})),
    "dpmpp-2m": ("dpmpp-2m", {}, Stock(scheduler=MULTISTEP)),
    "dpmpp-3m": ("dpmpp-3m", {}, Stock(scheduler=MULTISTEP, config={"solver_order": 3})),
    "dpmpp-2m-sde": ("dpmpp-2m-sde", {}, Stock(scheduler=MULTISTEP, config=SDE)),
    "dpmpp-3m-sde": (
        "dpmpp-3m-sde",
        {},
        Stock(scheduler=MULTISTEP, config={**SDE, "solver_order": 3}, mend=THIRD_SDE),
    ),
    "dpmpp-2s": ("dpmpp-2s", {}, Stock(scheduler="DPMSolverSinglestepScheduler")),
    "dpmpp-2s 3": (
        "dpmpp-2s",
        {"order": 3},
        Stock(scheduler="DPMSolverSinglestepScheduler", config={"solver_order": 3}),
    ),
    "dpmpp-2s 1": (
        "dpmpp-2s",
        {"order": 1},
        Stock(scheduler="DPMSolverSinglestepScheduler", config={"solver_order": 1}),
    ),
    "deis": ("deis", {}, Stock(scheduler="DEISMultistepScheduler")),
    "deis 3": (
        "deis",
        {"order": 3},
        Stock(scheduler="DEISMultistepScheduler", config={"solver_order": 3}),
    ),
    "unipc": ("unipc", {}, Stock(scheduler="UniPCMultistepScheduler")),
    "unipc 3": (
        "unipc",
        {"order": 3},
        Stock(scheduler="UniPCMultistepScheduler", config={"solver_order": 3}),
    ),
    "unipc 1": (
        "unipc",
        {"order": 1},
        Stock(scheduler="UniPCMultistepScheduler", config={"solver_order": 1}),
    ),
    "pndm": ("pndm", {}, Stock(scheduler="PNDMScheduler", config={"skip_prk_steps": True})),
    "pndm prk": ("pndm", {"skip_prk_steps": False}, Stock(scheduler="PNDMScheduler")),
    "ddim": ("ddim", {}, Stock(scheduler="DDIMScheduler")),
    "ddim eta": ("ddim", {"eta": 0.7}, Stock(scheduler="DDIMScheduler", step={"eta": 0.7})),
    "ddpm": ("ddpm", {}, Stock(scheduler="DDPMScheduler")),
    "lcm": ("lcm", {}, Stock(scheduler="LCMScheduler")),
    "tcd": ("tcd", {}, Stock(scheduler="TCDScheduler", step={"eta": 0.0})),
    "tcd eta": ("tcd", {"eta": 0.3}, Stock(scheduler="TCDScheduler", step={"eta": 0.3})),
}
FAMILIES = [
    *("euler", "heun", "dpm2", "dpm2-a", "lms", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde"),
    *("dpmpp-3m-sde", "dpmpp-2s", "dpmpp-2s 3", "deis", "deis 3", "unipc", "unipc 3"),
]
FINAL = ["euler", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "dpmpp-2s", "dpmpp-2s 3", "unipc"]
ZERO_SNR = [
    *("euler", "euler-a", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "dpmpp-3m-sde", "unipc"),
    *("unipc 3", "ddim", "ddim eta", "ddpm", "lcm", "tcd", "tcd eta"),
]


def check(
    name: str,
    schedule: ScheduleRecord,
    counts: Iterable[int],
    *,
    asked: dict[str, Any] | None = None,
    listed: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Hold plans against the scheduler.

    `asked` is of make_plan, `listed` and `config` of the scheduler.
    """
    sampler, settings, stock = STOCK[name]
    stock = Stock(
        scheduler=stock.scheduler,
        config=stock.config | (config or {}),
        step=stock.step,
        mend=stock.mend,
    )
    far = []
    for steps in counts:
        both = listed or {}
        plan = make_plan(schedule, sampler=sampler, steps=steps, **settings, **(asked or {}))
        truth = stock.final(schedule, torch.float64, steps=steps, **both)
        own = apart(stock.final(schedule, torch.float32, steps=steps, **both), truth)
        error = apart(planned(plan, picture="begin" in both), truth)
        if not error <= min(2 * own, 1e-4):
            far.append((steps, f"diffusers {own:.2g}, ours {error:.2g}"))
    assert not far


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", STOCK)
def test_whole_runs(name: str, prediction: str, spacing: str) -> None:
    schedule = record(prediction_type=prediction, timestep_spacing=spacing)
    short = () if name == "pndm prk" else (1, 2, 3) if prediction == "epsilon" else ()
    check(name, schedule, (*short, 5, 7, 20, 30))


@pytest.mark.parametrize("family", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_sigmas(name: str, family: str) -> None:
    for prediction in ("epsilon", "v_prediction"):
        schedule = record(prediction_type=prediction)
        config = {f"use_{family}_sigmas": True}
        check(name, schedule, (7, 20), asked={"sigmas": family}, config=config)


@pytest.mark.parametrize("name", FINAL)
def test_runs_that_end_at_the_least_sigma(name: str) -> None:
    check(name, record(final_sigmas_type="sigma_min"), (5, 6, 18, 20))


@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr(name: str) -> None:
    schedule = record(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    check(name, schedule, (5, 7, 20, 30))
    if name in FAMILIES:
        check(
            name, schedule, (7, 20), asked={"sigmas": "karras"}, config={"use_karras_sigmas": True}
        )


TIMESTEPS = [999, 800, 611, 300, 251, 10]
SIGMAS = [14.6, 7.0, 3.3, 1.1, 0.4, 0.1]


@pytest.mark.parametrize(
    "name",
    [
        *("euler", "heun", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "dpmpp-2s", "dpmpp-2s 3"),
        *("ddpm", "lcm", "tcd", "tcd eta"),
    ],
)
def test_listed_timesteps(name: str) -> None:
    both = {"timesteps": TIMESTEPS}
    check(name, record(), [len(TIMESTEPS)], asked=both, listed=both)


@pytest.mark.parametrize("end", [0.0, 0.05])
def test_listed_sigmas(end: float) -> None:
    sigmas = [*SIGMAS, end]
    check("euler", record(), [6], asked={"custom_sigmas": sigmas}, listed={"sigmas": sigmas})


@pytest.mark.parametrize(
    "name", [n for n in STOCK if n.split()[0] not in ("euler-a", "dpm2", "dpm2-a", "pndm")]
)
def test_models_that_predict_the_sample(name: str) -> None:
    check(name, record(prediction_type="sample"), [9, 20])


@pytest.mark.parametrize("karras", [False, True])
def test_log_linear_sigmas(karras: bool) -> None:
    schedule = record(interpolation_type="log_linear", use_karras_sigmas=karras)
    check("euler", schedule, (5, 20))


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("name", ["ddim", "ddim eta", "pndm", "pndm prk"])
def test_where_the_training_schedule_ends(name: str, set_alpha_to_one: bool) -> None:
    check(name, record(set_alpha_to_one=set_alpha_to_one, steps_offset=0), (5, 20))


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": tuple(1e-4 + 2e-5 * i for i in range(900)), "num_train_timesteps": 900},
    ],
)
@pytest.mark.parametrize("name", ["euler", "dpm2", "dpmpp-2m", "deis", "unipc", "ddim", "pndm"])
def test_other_schedules(name: str, betas: dict[str, Any]) -> None:
    check(name, record(**betas, steps_offset=0), (7, 20))
    if name in FAMILIES:
        for family in ("karras", "exponential"):
            config = {f"use_{family}_sigmas": True}
            check(name, record(**betas), (7,), asked={"sigmas": family}, config=config)


@pytest.mark.parametrize("begin", [1, 6])
@pytest.mark.parametrize("name", [n for n in STOCK if n.split()[0] not in ("lms", "pndm")])
def test_runs_that_begin_from_a_picture(name: str, begin: int) -> None:
    both = {"begin": begin}
    check(name, record(), (9, 20), asked=both, listed=both)

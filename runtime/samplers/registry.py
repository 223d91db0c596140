"""The samplers there are: their names, and which settings each takes."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.consistency import lcm, tcd
from diffusion_rt.runtime.samplers.ddim import ddim, ddpm
from diffusion_rt.runtime.samplers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
)
from diffusion_rt.runtime.samplers.euler import euler, euler_ancestral
from diffusion_rt.runtime.samplers.heun import dpm_2, dpm_2_ancestral, dpmpp_2s_ancestral, heun
from diffusion_rt.runtime.samplers.lms import deis, lms
from diffusion_rt.runtime.samplers.pndm import pndm
from diffusion_rt.runtime.samplers.run import Run
from diffusion_rt.runtime.samplers.unipc import unipc
from diffusion_rt.runtime.schedule import (
    DISTILLED,
    EULER_GRID,
    MIDPOINT_GRID,
    MULTISTEP_GRID,
    SIGMA_GRID,
    SOLVER_GRID,
    WHOLE_GRID,
    Grid,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One sampler: the function that makes its steps, and what may be asked of it.

    `takes` holds the settings it takes: sigmas, timesteps, spacing where it has one of its own,
    final_sigmas_type, eta, order, s_churn and skip_prk_steps.
    """

    steps: Callable[[Run], list[Step]]
    scheduler: str | None = None  # the class of diffusers it follows
    grid: Grid
    exploding: bool  # how its latents are scaled; else variance preserving
    takes: frozenset[str] = frozenset()
    spacing: str | None = None  # the only spacing it has
    final: str = "zero"  # where the run ends, if that is not for the user to say
    heeds_karras: bool = False  # its scheduler reads use_karras_sigmas
    samples: bool = True  # it has a form for models that predict the sample
    orders: tuple[int, ...] = (2,)  # the first is the default


LISTS = frozenset({"sigmas", "timesteps"})
FINAL = frozenset({"final_sigmas_type"})

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(
        steps=euler,
        scheduler="EulerDiscreteScheduler",
        grid=EULER_GRID,
        exploding=True,
        takes=LISTS | FINAL | {"s_churn"},
        heeds_karras=True,
    ),
    "euler-a": Sampler(
        steps=euler_ancestral,
        scheduler="EulerAncestralDiscreteScheduler",
        grid=SIGMA_GRID,
        exploding=True,
        takes=LISTS,
    ),
    "heun": Sampler(
        steps=heun,
        scheduler="HeunDiscreteScheduler",
        grid=SIGMA_GRID,
        exploding=True,
        takes=LISTS,
        heeds_karras=True,
    ),
    "dpm2": Sampler(
        steps=dpm_2,
        scheduler="KDPM2DiscreteScheduler",
        grid=MIDPOINT_GRID,
        exploding=True,
        takes=LISTS,
        heeds_karras=True,
    ),
    "dpm2-a": Sampler(
        steps=dpm_2_ancestral,
        scheduler="KDPM2AncestralDiscreteScheduler",
        grid=MIDPOINT_GRID,
        exploding=True,
        takes=LISTS,
        heeds_karras=True,
    ),
    "lms": Sampler(
        steps=lms,
        scheduler="LMSDiscreteScheduler",
        grid=SIGMA_GRID,
        exploding=True,
        takes=LISTS | {"order"},
        heeds_karras=True,
        orders=(4, 3, 2, 1),
    ),
    "dpmpp-2m": Sampler(
        steps=dpmpp_2m,
        scheduler="DPMSolverMultistepScheduler",
        grid=MULTISTEP_GRID,
        exploding=False,
        takes=LISTS | FINAL,
        heeds_karras=True,
    ),
    "dpmpp-3m": Sampler(
        steps=dpmpp_3m,
        grid=MULTISTEP_GRID,
        exploding=False,
        takes=LISTS | FINAL,
        heeds_karras=True,
    ),
    "dpmpp-2m-sde": Sampler(
        steps=dpmpp_2m_sde,
        grid=MULTISTEP_GRID,
        exploding=False,
        takes=LISTS | FINAL,
        heeds_karras=True,
    ),
    "dpmpp-3m-sde": Sampler(
        steps=dpmpp_3m_sde,
        grid=MULTISTEP_GRID,
        exploding=False,
        takes=LISTS | FINAL,
        heeds_karras=True,
    ),
    "dpmpp-2s": Sampler(
        steps=dpmpp_2s,
        scheduler="DPMSolverSinglestepScheduler",
        grid=SOLVER_GRID,
        exploding=False,
        takes=LISTS | FINAL | {"order"},
        spacing="linspace",
        heeds_karras=True,
        orders=(2, 1, 3),
    ),
    "dpmpp-2s-a": Sampler(
        steps=dpmpp_2s_ancestral,
        grid=SIGMA_GRID,
        exploding=True,
        takes=LISTS,
        heeds_karras=True,
    ),
    "deis": Sampler(
        steps=deis,
        scheduler="DEISMultistepScheduler",
        grid=SOLVER_GRID,
        exploding=False,
        takes=LISTS | {"order"},
        final="sigma_min",
        heeds_karras=True,
        orders=(2, 1, 3),
    ),
    "unipc": Sampler(
        steps=unipc,
        scheduler="UniPCMultistepScheduler",
        grid=SOLVER_GRID,
        exploding=False,
        takes=LISTS | FINAL | {"order"},
        heeds_karras=True,
        orders=(2, 1, 3),
    ),
    "pndm": Sampler(
        steps=pndm,
        scheduler="PNDMScheduler",
        grid=WHOLE_GRID,
        exploding=False,
        takes=frozenset({"skip_prk_steps"}),
        samples=False,
    ),
    "ddim": Sampler(
        steps=ddim,
        scheduler="DDIMScheduler",
        grid=WHOLE_GRID,
        exploding=False,
        takes=frozenset({"timesteps", "eta"}),
    ),
    "ddpm": Sampler(
        steps=ddpm,
        scheduler="DDPMScheduler",
        grid=WHOLE_GRID,
        exploding=False,
        takes=frozenset({"timesteps"}),
    ),
    "lcm": Sampler(
        steps=lcm,
        scheduler="LCMScheduler",
        grid=WHOLE_GRID,
        exploding=False,
        takes=frozenset({"timesteps"}),
        spacing=DISTILLED,
    ),
    "tcd": Sampler(
        steps=tcd,
        scheduler="TCDScheduler",
        grid=WHOLE_GRID,
        exploding=False,
        takes=frozenset({"timesteps", "eta"}),
        spacing=DISTILLED,
    ),
}

ALIASES: dict[str, str] = {
    "euler-ancestral": "euler-a",
    "dpm-2": "dpm2",
    "dpm-2-a": "dpm2-a",
    "dpm2-ancestral": "dpm2-a",
    "dpm-2-ancestral": "dpm2-a",
    "dpmpp-2s-ancestral": "dpmpp-2s-a",
    "plms": "pndm",
    "uni-pc": "unipc",
    **{row.scheduler.lower(): name for name, row in SAMPLERS.items() if row.scheduler},
}
"""Other names, in small letters, with hyphens between words and `p` for `+`."""

"""The samplers there are: their names, and which settings each takes."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.euler import euler, euler_ancestral
from diffusion_rt.runtime.samplers.run import Run
from diffusion_rt.runtime.schedule import EULER_GRID, SIGMA_GRID, Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One sampler: the function that makes its steps, and what may be asked of it.

    `takes` holds the settings it takes: sigmas, timesteps, spacing where it has one of its own,
    final_sigmas_type, eta, order, s_churn, skip_prk_steps, and `sample` where it has a form for
    models that predict the sample.
    """

    steps: Callable[[Run], list[Step]]
    scheduler: str | None = None  # the class of diffusers it follows
    grid: Grid
    exploding: bool  # how its latents are scaled; else variance preserving
    takes: frozenset[str] = frozenset()
    spacing: str | None = None  # the only spacing it has
    final: str = "zero"  # where the run ends, if that is not for the user to say
    heeds_karras: bool = False  # its scheduler reads use_karras_sigmas
    orders: tuple[int, ...] = (0,)  # the first is the default


LISTS = frozenset({"sigmas", "timesteps"})

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(
        steps=euler,
        scheduler="EulerDiscreteScheduler",
        grid=EULER_GRID,
        exploding=True,
        takes=LISTS | {"s_churn", "final_sigmas_type", "sample"},
        heeds_karras=True,
    ),
    "euler-a": Sampler(
        steps=euler_ancestral,
        scheduler="EulerAncestralDiscreteScheduler",
        grid=SIGMA_GRID,
        exploding=True,
        takes=LISTS,
    ),
}

ALIASES: dict[str, str] = {
    "euler-ancestral": "euler-a",
    **{row.scheduler.lower(): name for name, row in SAMPLERS.items() if row.scheduler},
}
"""Other names, in small letters, with hyphens between words and `p` for `+`."""

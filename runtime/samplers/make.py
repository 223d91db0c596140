"""From a sampler's name and the settings of a request to a plan."""

import math
import re
from collections.abc import Sequence

import numpy as np

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import ScheduleRecord
from diffusion_rt.runtime.plan import Plan
from diffusion_rt.runtime.request import SIGMAS, SPACINGS, nearest, way_out
from diffusion_rt.runtime.samplers.registry import ALIASES, SAMPLERS, Sampler
from diffusion_rt.runtime.samplers.run import Options, Run
from diffusion_rt.runtime.schedule import Levels, Schedule


def sampler_name(name: str) -> str:
    """The stable name of a sampler called by any of its names, such as `dpmpp-2m-karras`.

    Takes our names, AUTOMATIC1111's ("DPM++ 2M Karras"), ComfyUI's ("dpmpp_2m") and diffusers'
    scheduler classes. Raises BadInput with the nearest name where it knows none such.
    """
    sampler, family = _resolve(name)
    return f"{sampler}-{family}" if family else sampler


def make_plan(
    record: ScheduleRecord,
    *,
    sampler: str | None = None,
    steps: int,
    spacing: str | None = None,
    sigmas: str | None = None,
    timesteps: Sequence[float] | None = None,
    custom_sigmas: Sequence[float] | None = None,
    final_sigmas_type: str | None = None,
    begin: int = 0,
    eta: float = 0.0,
    order: int | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    skip_prk_steps: bool = True,
) -> Plan:
    """The plan of one denoise; None leaves a choice to the record, then to diffusers' default.

    `steps` counts noise levels; a sampler may evaluate the model more often. Listed `timesteps` or
    `custom_sigmas` count instead of it; the latter end with the level the run ends at, as in
    diffusers. `begin` leaves out the steps before it, as image-to-image does (strength s:
    `steps - int(steps * s)`). `order` is that of deis, unipc, lms and dpmpp-2s, `eta` that of ddim
    and tcd (its gamma); the rest is as in diffusers. Raises BadInput where the sampler cannot take
    a setting, or a value is out of range.
    """
    name, family = _own(record) if sampler is None else _resolve(sampler)
    chosen = SAMPLERS[name]
    if family is not None and sigmas not in (None, family):
        raise BadInput(f"sampler={sampler!r} means {family} sigmas and sigmas={sigmas}; drop one")
    sigmas = sigmas or family
    listed = timesteps is not None or custom_sigmas is not None
    if record.use_karras_sigmas and chosen.heeds_karras and not listed and spacing is None:
        sigmas = sigmas or "karras"
    if sum(x is not None for x in (sigmas, timesteps, custom_sigmas)) > 1:
        raise BadInput("sigmas, listed sigmas and listed timesteps exclude each other; give one")
    _check_takes(
        name,
        {
            "sigmas": sigmas is not None or custom_sigmas is not None,
            "timesteps": timesteps is not None,
            "spacing": spacing not in (None, chosen.spacing) and chosen.spacing is not None,
            "final_sigmas_type": final_sigmas_type is not None,
            "eta": eta != 0,
            "order": order is not None,
            "s_churn": s_churn != 0,
            "skip_prk_steps": not skip_prk_steps,
        },
    )
    if record.prediction_type == "sample" and not chosen.samples:
        raise BadInput(f"sampler {name} has no form for models that predict the sample; try euler")
    if order is not None and (isinstance(order, bool) or order not in chosen.orders):
        raise BadInput(f"order={order!r} is none of sampler {name}; give one of {chosen.orders}")
    options = Options(
        order=order or chosen.orders[0],
        eta=eta,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
        skip_prk_steps=skip_prk_steps,
    )
    spacing = chosen.spacing or spacing or record.timestep_spacing
    if spacing not in (*SPACINGS, chosen.spacing):
        raise BadInput(f"spacing={spacing!r} is not known; {way_out(str(spacing), SPACINGS)}")
    schedule = Schedule(record)
    levels = schedule.levels(
        chosen.grid,
        steps=steps,
        spacing=spacing,
        sigmas=sigmas,
        final=_final(chosen, record, final_sigmas_type),
        timesteps=timesteps,
        custom_sigmas=custom_sigmas,
    )
    count = len(levels.timesteps)
    if "sigmas" in chosen.takes and (np.diff(levels.sigmas[:-1]) >= 0).any():
        raise BadInput(
            f"steps={count} puts two steps of sampler {name} on one noise level; ask for fewer"
        )
    if isinstance(begin, bool) or not isinstance(begin, int) or not 0 <= begin < count:
        raise BadInput(f"begin={begin!r} is no step of {count}; give 0 to {count - 1}")
    run = Run(
        name=name,
        schedule=schedule,
        levels=levels,
        options=options,
        begin=begin,
        listed=timesteps is not None,
    )
    made = tuple(chosen.steps(run))
    start = _start(levels, spacing) if chosen.exploding else 1.0
    picture = _picture(made[0].sigma, exploding=chosen.exploding)
    return Plan(sampler=name, start=start, picture=picture, steps=made)


def _start(levels: Levels, spacing: str) -> float:
    """The scale of noise that a run begins with where latents are not of unit variance."""
    most = float(levels.sigmas.max())
    # diffusers starts leading spacing from a latent that has the signal's variance as well.
    return math.hypot(most, 1) if spacing == "leading" else most


def _picture(sigma: float, *, exploding: bool) -> tuple[float, float]:
    """The scales of a picture and of the noise added to it, to begin at a noise level."""
    if exploding:
        return 1.0, sigma
    return 1 / math.hypot(1, sigma), 1 / math.hypot(1, 1 / sigma)


def _final(chosen: Sampler, record: ScheduleRecord, asked: str | None) -> str:
    if asked not in (None, "zero", "sigma_min"):
        raise BadInput(f"final_sigmas_type={asked!r} is not known; give zero or sigma_min")
    if "final_sigmas_type" in chosen.takes:
        return asked or record.final_sigmas_type
    return chosen.final


def _check_takes(name: str, asked: dict[str, bool]) -> None:
    for setting, wanted in asked.items():
        if not wanted or setting in SAMPLERS[name].takes:
            continue
        others = [other for other, sampler in SAMPLERS.items() if setting in sampler.takes]
        way = f"leave it out, or try {others[0]}" if others else "leave it out"
        raise BadInput(f"sampler {name} takes no {setting}; {way}")


def _own(record: ScheduleRecord) -> tuple[str, None]:
    """The sampler that the model comes with."""
    name = ALIASES.get(record.scheduler.lower())
    if name is None:
        raise BadInput(
            f"this model comes with the scheduler {record.scheduler[:60]!r}, which is not known; "
            "ask for a sampler, such as euler"
        )
    return name, None


def _resolve(name: str) -> tuple[str, str | None]:
    """A sampler's stable name, and the family of sigmas the name given asks for, if any."""
    if not isinstance(name, str):
        raise BadInput(f"sampler={name!r} is no name; try sampler='euler'")
    plain = _normal(name)
    for family in (None, *SIGMAS):
        stem = plain if family is None else plain.removesuffix(f"-{family}")
        if family is not None and stem == plain:
            continue
        if stem in SAMPLERS:
            return stem, family
        if stem in ALIASES:
            return ALIASES[stem], family
    known = {_normal(other): ALIASES.get(other, other) for other in (*SAMPLERS, *ALIASES)}
    known |= {
        f"{stem}-{family}": f"{own}-{family}"
        for stem, own in known.items()
        for family in SIGMAS
        if "sigmas" in SAMPLERS[own].takes
    }
    close = nearest(plain, list(known))
    hint = f"did you mean {known[close]!r}?" if close else f"one of {', '.join(SAMPLERS)}"
    raise BadInput(f"sampler {name[:60]!r} is not known; {hint}")


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name[:100].lower().replace("+", "p")).strip("-")

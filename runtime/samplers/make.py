"""From a sampler's name and the settings of a request to a plan."""

import math
import re
from collections.abc import Sequence

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import ScheduleRecord
from diffusion_rt.runtime.plan import Plan
from diffusion_rt.runtime.request import SIGMAS, nearest
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
    name, family = _resolve(record.scheduler if sampler is None else sampler)
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
            "sample": record.prediction_type == "sample",
        },
    )
    for setting, value, most in (
        ("eta", eta, 1),
        ("s_churn", s_churn, 1000),
        ("s_noise", s_noise, 10),
        ("s_tmin", s_tmin, math.inf),
        ("s_tmax", s_tmax, math.inf),
    ):
        if not 0 <= value <= most:
            raise BadInput(f"{setting}={value!r} is out of range; give 0 to {most}")
    if order is not None and (isinstance(order, bool) or order not in chosen.orders):
        raise BadInput(f"order={order!r} is none of sampler {name}; give one of {chosen.orders}")
    final = _final(chosen, record, final_sigmas_type)
    spacing = chosen.spacing or spacing or record.timestep_spacing
    schedule = Schedule(record)
    levels = schedule.levels(
        chosen.grid,
        steps=steps,
        spacing=spacing,
        sigmas=sigmas,
        final=final,
        timesteps=timesteps,
        custom_sigmas=custom_sigmas,
    )
    count = len(levels.timesteps)
    if isinstance(begin, bool) or not isinstance(begin, int) or not 0 <= begin < count:
        raise BadInput(f"begin={begin!r} is no step of {count}; give 0 to {count - 1}")
    options = Options(
        eta=eta,
        order=order or chosen.orders[0],
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
        skip_prk_steps=skip_prk_steps,
    )
    run = Run(
        name=name,
        schedule=schedule,
        levels=levels,
        options=options,
        begin=begin,
        final=final,
        listed=timesteps is not None,
    )
    start, picture = _start(chosen, levels, spacing, begin)
    return Plan(sampler=name, start=start, picture=picture, steps=tuple(chosen.steps(run)))


def _start(
    chosen: Sampler, levels: Levels, spacing: str, begin: int
) -> tuple[float, tuple[float, float]]:
    """The scale of noise a run starts from, and those of a picture and of the noise added to it."""
    if not chosen.exploding:
        return 1.0, (float(levels.alpha[begin]), float(levels.sigma[begin]))
    most = float(levels.sigmas.max())
    # diffusers starts leading spacing from a latent that has the signal's variance as well.
    start = math.hypot(most, 1) if spacing == "leading" else most
    return start, (1.0, float(levels.sigmas[begin]))


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
        if setting == "sample":
            raise BadInput(f"sampler {name} has no form for models that predict samples; try euler")
        others = [other for other, sampler in SAMPLERS.items() if setting in sampler.takes]
        way = f"leave it out, or try {others[0]}" if others else "leave it out"
        raise BadInput(f"sampler {name} takes no {setting}; {way}")


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
    known = {_normal(other): other for other in (*SAMPLERS, *ALIASES)}
    close = known[nearest(plain, list(known))]
    raise BadInput(f"sampler {name!r} is not known; did you mean {ALIASES.get(close, close)!r}?")


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name[:100].lower().replace("+", "p")).strip("-")

"""diffusers' schedulers as oracles: each in float32 as it is, and in float64.

The float64 run is the scheduler's own source with every float32 in it read as float64. What the
model was trained with, the table of alphas, stays what it is in float32; only for zero terminal
SNR, where the float32 table itself loses digits, is it computed in float64 too.
"""

import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_rt.engines.manifest import ScheduleRecord
from diffusion_rt.runtime.plan import Plan, advance

SHAPE = (2, 4, 6, 8)
WIDTH = SHAPE[-1] * SHAPE[-2]


def record(**changes: Any) -> ScheduleRecord:
    """SDXL's schedule, with changes."""
    settings: dict[str, Any] = {
        "scheduler": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "rescale_betas_zero_snr": False,
    }
    return ScheduleRecord(**(settings | changes))


def model(latent: torch.Tensor, timestep: float) -> torch.Tensor:
    """Smooth, nonlinear, and the same for every program: what the UNet is to a sampler."""
    mixed = latent.flatten(-2) @ _mixing(latent.dtype)
    bent = torch.tanh(mixed + float(np.sin(timestep / 150)))
    return 0.4 * bent.reshape(latent.shape) + 0.6 * latent


@cache
def _mixing(dtype: torch.dtype) -> torch.Tensor:
    mixing = np.random.default_rng(3).standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    return torch.from_numpy(mixing).to(dtype)


@cache
def _noise(place: int) -> torch.Tensor:
    noise = np.random.default_rng([7, place]).standard_normal(SHAPE)
    return torch.from_numpy(noise.astype(np.float32).astype(np.float64))


class Draws:
    """The noise that every run of a comparison draws, in the same order."""

    def __init__(self) -> None:
        self._places = count()

    def next(self) -> torch.Tensor:
        return _noise(next(self._places))


START = Draws().next()
PICTURE = torch.sin(START.cumsum(-1))


@dataclass(frozen=True, kw_only=True)
class Stock:
    """One of diffusers' schedulers, and how it is asked for what a plan is asked for."""

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)  # arguments of its `step`
    mend: tuple[str, str] | None = None  # what is put right in its source, and by what

    def final(
        self,
        schedule: ScheduleRecord,
        dtype: torch.dtype,
        *,
        steps: int,
        begin: int | None = None,
        **ask: Any,
    ) -> NDArray[np.float64]:
        """The latent at the end of a whole run; `ask` goes to `set_timesteps` instead of steps.

        With `begin` the run starts there, from `PICTURE` with noise, as image-to-image does.
        """
        asked = ask or {"num_inference_steps": steps}
        with default_dtype(dtype):
            scheduler = self._scheduler(schedule, dtype)
            scheduler.set_timesteps(**asked)
            if not scheduler.timesteps.is_floating_point():
                # Whole timesteps are cut from logarithms; the last bit decides between two.
                single = self._scheduler(schedule, torch.float32)
                single.set_timesteps(**asked)
                scheduler.timesteps = single.timesteps
            draws = Draws()

            def randn(*_: Any, dtype: torch.dtype, **__: Any) -> torch.Tensor:
                return draws.next().to(dtype)

            latent = START.to(dtype) * scheduler.init_noise_sigma
            timesteps = scheduler.timesteps[(begin or 0) * scheduler.order :]
            if hasattr(scheduler, "set_begin_index"):
                # Else it looks its place up, and misses it where two timesteps are rounded alike.
                scheduler.set_begin_index((begin or 0) * scheduler.order)
            if begin is not None:
                latent = scheduler.add_noise(PICTURE.to(dtype), START.to(dtype), timesteps[:1])
            latent = latent.to(dtype)
            module = sys.modules[type(scheduler).__module__]
            with mock.patch.object(module, "randn_tensor", randn, create=True):
                for timestep in timesteps:
                    seen = scheduler.scale_model_input(latent, timestep)
                    output = model(seen, float(timestep))
                    latent = scheduler.step(output, timestep, latent, **self.step).prev_sample
            ended: NDArray[np.float64] = latent.double().numpy()
            return ended

    def _scheduler(self, schedule: ScheduleRecord, dtype: torch.dtype) -> Any:
        """Made once for each table of alphas; all else is read from its config when it runs."""
        kind = _class(self.scheduler, dtype, self.mend)
        parameters = inspect.signature(kind.__init__).parameters
        config = {n: p.default for n, p in parameters.items() if n not in ("self", "kwargs")}
        for name in ScheduleRecord.__slots__:
            if name in config:
                config[name] = getattr(schedule, name)
        if "clip_sample" in config:
            config["clip_sample"] = False
        config |= self.config
        table = {name: config[name] for name in _TABLE if name in config}
        scheduler = _made(kind, tuple(table.items()))
        scheduler.register_to_config(**config)
        return scheduler


_TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "solver_order",
)


@cache
def _made(kind: Any, table: tuple[tuple[str, Any], ...]) -> Any:
    return kind(**dict(table))


def planned(plan: Plan, *, picture: bool = False) -> NDArray[np.float64]:
    """The latent at the end of a plan, carried in float32."""
    draws = Draws()
    encoded = PICTURE.numpy().astype(np.float32) if picture else None
    state = plan.first(START.numpy().astype(np.float32), encoded)
    for step in plan.steps:
        seen = torch.from_numpy(state[0] * np.float32(step.c_in))
        output = model(seen, float(np.float32(step.timestep))).numpy()
        fresh = draws.next().numpy().astype(np.float32) if step.noise else None
        state = advance(state, output, fresh, step)
    ended: NDArray[np.float64] = state[0].astype(np.float64)
    return ended


def apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Relative difference."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def _class(name: str, dtype: torch.dtype, mend: tuple[str, str] | None) -> Any:
    stock = getattr(diffusers, name)
    if dtype == torch.float32 and mend is None:
        return stock
    origin = importlib.util.find_spec(stock.__module__)
    assert origin is not None
    assert origin.origin is not None
    source = Path(origin.origin).read_text()
    if mend is not None:
        assert source.count(mend[0]) == 1
        source = source.replace(*mend)
    if dtype == torch.float64:
        source = source.replace("float32", "float64")
        source = source.replace("torch.cumprod(self.alphas, dim=0)", "trained_table(self)")
    module = types.ModuleType(f"diffusers.schedulers.{dtype}_{name}_{mend is not None}")
    module.__package__ = "diffusers.schedulers"
    module.__dict__["trained_table"] = _trained_table(stock)
    sys.modules[module.__name__] = module
    exec(compile(source, origin.origin, "exec"), module.__dict__)
    return getattr(module, name)


def _trained_table(stock: Any) -> Callable[[Any], torch.Tensor]:
    def table(scheduler: Any) -> torch.Tensor:
        if scheduler.config.get("rescale_betas_zero_snr"):
            return torch.cumprod(scheduler.alphas, dim=0)
        known = inspect.signature(stock.__init__).parameters
        with default_dtype(torch.float32):
            single = stock(**{k: v for k, v in scheduler.config.items() if k in known})
        return torch.as_tensor(single.alphas_cumprod).double()

    return table

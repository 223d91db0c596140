"""What every sampler is given, and the two ways to scale a latent."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.schedule import Levels, Schedule

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings that only some samplers take; the registry says which."""

    eta: float = 0.0
    order: int = 0  # 0: the sampler's own
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    skip_prk_steps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One denoise to be planned: its levels, of which those before `begin` are left out."""

    name: str
    schedule: Schedule
    levels: Levels
    options: Options
    begin: int
    final: str  # zero or sigma_min
    listed: bool  # the timesteps are the user's

    @property
    def prediction(self) -> str:
        """What the model predicts: epsilon, v_prediction or sample."""
        return self.schedule.record.prediction_type

    @property
    def count(self) -> int:
        """How many steps the whole run has, those before `begin` included."""
        return len(self.levels.timesteps)

    def each(self) -> Iterator[tuple[float, float, float]]:
        """Timestep, sigma, and the sigma after it, of each step."""
        timesteps, sigmas = self.levels.timesteps.tolist(), self.levels.sigmas.tolist()
        for i in range(self.begin, self.count):
            yield timesteps[i], sigmas[i], sigmas[i + 1]


def basis(order: int) -> Row:
    """The unit vectors of [S ; q ; noise] for K = `order`; a row of a matrix is a sum of them."""
    return np.eye(order + 2)


def exploding(run: Run, timestep: float, sigma: float, rows: Sequence[Row]) -> Step:
    """A step whose S[0] is `x + sigma * noise` (variance exploding, as in k-diffusion)."""
    scale = 1 / math.hypot(sigma, 1)
    c_skip, c_out = {
        "epsilon": (1.0, -sigma),
        "v_prediction": (scale**2, -sigma * scale),
        "sample": (0.0, 1.0),
    }[run.prediction]
    return _step(timestep, sigma, scale, c_skip, c_out, rows)


def preserving(run: Run, timestep: float, alpha: float, sigma: float, rows: Sequence[Row]) -> Step:
    """A step whose S[0] is `alpha * x + sigma * noise`, alpha^2 + sigma^2 = 1 (as in DDPM)."""
    c_skip, c_out = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "v_prediction": (alpha, -sigma),
        "sample": (0.0, 1.0),
    }[run.prediction]
    return _step(timestep, sigma / alpha if alpha else math.inf, 1.0, c_skip, c_out, rows)


def _step(
    timestep: float, sigma: float, c_in: float, c_skip: float, c_out: float, rows: Sequence[Row]
) -> Step:
    matrix = np.stack(rows)
    return Step(
        timestep=float(timestep),
        sigma=sigma,
        c_in=c_in,
        c_skip=c_skip,
        c_out=c_out,
        noise=bool(matrix[:, -1].any()),
        matrix=matrix,
    )

"""What every sampler is given, and the two ways to scale a latent."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.schedule import Levels, Schedule

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings that only some samplers take; the registry says which. Raises BadInput."""

    order: int
    eta: float = 0.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    skip_prk_steps: bool = True

    def __post_init__(self) -> None:
        most = {"eta": 1.0, "s_churn": 1000.0, "s_noise": 10.0, "s_tmin": math.inf}
        for name, bound in (most | {"s_tmax": math.inf}).items():
            value = getattr(self, name)
            if not 0 <= value <= bound:
                raise BadInput(f"{name}={value!r} is out of range; give 0 to {bound:g}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One denoise to be planned: its levels, of which those before `begin` are left out."""

    name: str
    schedule: Schedule
    levels: Levels
    options: Options
    begin: int
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

    def timestep_at(self, sigma: float) -> float:
        """The timestep the model is told at a level of the sampler's own."""
        return float(self.schedule.timestep_at(np.array([sigma]))[0])

    def trained_level(self, timestep: int) -> tuple[float, float]:
        """Signal and noise of a latent of unit variance at a timestep of the training schedule.

        Raises BadInput where no signal is left and the model predicts the noise all the same.
        """
        product = float(self.schedule.alphas_cumprod[timestep])
        if product == 0 and self.prediction == "epsilon":
            raise BadInput(
                f"sampler {self.name} cannot take a model that predicts epsilon to timestep "
                f"{timestep}, where zero terminal SNR leaves no signal; try euler"
            )
        return math.sqrt(product), math.sqrt(1 - product)

    def whole_timesteps(self) -> list[int]:
        """The timesteps as places in the training schedule. Raises BadInput for others."""
        for timestep in self.levels.timesteps.tolist():
            if timestep != int(timestep):
                raise BadInput(f"sampler {self.name} takes whole timesteps, not {timestep:g}")
        return [int(timestep) for timestep in self.levels.timesteps]


def basis(order: int) -> Row:
    """The unit vectors of [S ; q ; noise] for K = `order`; a row of a matrix is a sum of them."""
    return np.eye(order + 2)


def exploding(run: Run, timestep: float, sigma: float, rows: Sequence[Row]) -> Step:
    """A step whose S[0] is `x + sigma * noise` (variance exploding, as in k-diffusion)."""
    scale = 1 / math.hypot(sigma, 1)
    if run.prediction == "epsilon":
        c_skip, c_out = 1.0, -sigma
    elif run.prediction == "v_prediction":
        c_skip, c_out = scale**2, -sigma * scale
    else:
        c_skip, c_out = 0.0, 1.0
    return _step(timestep, sigma, scale, c_skip, c_out, rows)


def preserving(run: Run, timestep: float, alpha: float, sigma: float, rows: Sequence[Row]) -> Step:
    """A step whose S[0] is `alpha * x + sigma * noise`, alpha^2 + sigma^2 = 1 (as in DDPM)."""
    if run.prediction == "epsilon":
        c_skip, c_out = 1 / alpha, -sigma / alpha
    elif run.prediction == "v_prediction":
        c_skip, c_out = alpha, -sigma
    else:
        c_skip, c_out = 0.0, 1.0
    return _step(timestep, sigma / alpha if alpha else math.inf, 1.0, c_skip, c_out, rows)


def _step(
    timestep: float, sigma: float, c_in: float, c_skip: float, c_out: float, rows: Sequence[Row]
) -> Step:
    matrix = np.stack(rows)
    return Step(
        timestep=float(timestep),
        sigma=float(sigma),
        c_in=float(c_in),
        c_skip=float(c_skip),
        c_out=float(c_out),
        noise=bool(matrix[:, -1].any()),
        matrix=matrix,
    )

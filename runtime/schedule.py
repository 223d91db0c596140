"""The noise schedule a model was trained with, and the noise levels one denoise visits.

A latent at timestep t is `sqrt(a) * x + sqrt(1 - a) * noise`, a = `alphas_cumprod[t]`. Its sigma is
the ratio of noise to signal, `sqrt((1 - a) / a)`. The tables are computed in float32, as PyTorch
does: they are constants the model was trained with. All that is derived from them is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import ScheduleRecord
from diffusion_rt.runtime.request import MAX_STEPS, SIGMAS, way_out

Vector = NDArray[np.float64]

MAX_TRAIN_TIMESTEPS = 100_000
LEAST_ALPHA = 2.0**-24
"""Stands for no signal at all (zero terminal SNR) where sigma must be finite: sigma = 4096."""

MAX_SIGMA = 1e6

AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Sigmas for ten steps of SDXL (Sabour et al., 2024, "Align Your Steps")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How a family of samplers lays timesteps on the schedule; they differ in diffusers too.

    `extra`: one more point is laid out than there are steps, and the lowest left to the end of the
    run (the DPM-Solver family). `whole`: timesteps of linspace spacing are rounded. `spaced_ends`:
    Karras, exponential and beta sigmas run between the first and last sigma of the spacing, rather
    than of the whole schedule. `karras`, `others`: what is done to the timesteps of such sigmas.
    """

    extra: bool
    whole: bool
    spaced_ends: bool
    karras: Literal["exact", "rounded", "rounded-unless-cosine"] = "exact"
    others: Literal["exact", "floor"] = "exact"
    log_linear: bool = False


EULER_GRID = Grid(extra=False, whole=False, spaced_ends=True, log_linear=True)
SIGMA_GRID = Grid(extra=False, whole=False, spaced_ends=True)  # Heun, LMS and what k-diffusion has
MIDPOINT_GRID = Grid(extra=False, whole=False, spaced_ends=True, karras="rounded")  # DPM2
WHOLE_GRID = Grid(extra=False, whole=True, spaced_ends=True)  # DDIM, DDPM, PNDM
SOLVER_GRID = Grid(extra=True, whole=True, spaced_ends=False, karras="rounded", others="floor")
MULTISTEP_GRID = replace(SOLVER_GRID, karras="rounded-unless-cosine")

DISTILLED = "distilled"
"""The spacing of samplers for distilled models: a share of the `DISTILLATION_STEPS`."""
DISTILLATION_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """The noise levels of one run: step i takes a latent from sigma[i] to sigma[i + 1]."""

    timesteps: Vector  # [n], what the model is told
    sigmas: Vector  # [n + 1], falling; the last one is where the run ends

    @property
    def alpha(self) -> Vector:
        """Signal of a latent of unit variance, [n + 1]."""
        return 1 / np.sqrt(self.sigmas**2 + 1)

    @property
    def sigma(self) -> Vector:
        """Noise of a latent of unit variance, [n + 1]."""
        return self.sigmas * self.alpha


class Schedule:
    """The tables of one `ScheduleRecord`."""

    def __init__(self, record: ScheduleRecord) -> None:
        """Raises BadInput where the record describes no schedule."""
        _check(record)
        self.record = record
        self.alphas_cumprod = training_alphas_cumprod(record)
        """[timesteps]; the last one is 0 where the record asks for zero terminal SNR."""
        kept = self.alphas_cumprod
        if record.rescale_betas_zero_snr:
            kept = np.maximum(kept, LEAST_ALPHA)
        if not kept.min() > 1e-12:
            raise BadInput(
                f"the schedule of this model ({record.scheduler}) ends without signal and does not "
                "say rescale_betas_zero_snr; its betas are too large: export the checkpoint again"
            )
        self.sigmas = np.sqrt((1 - kept) / kept).astype(np.float32).astype(np.float64)
        """[timesteps], rising, finite and above 0."""
        if not self.sigmas.min() > 0:
            raise BadInput(
                f"the schedule of this model ({record.scheduler}) starts without noise; "
                "its betas are too small: export the checkpoint again"
            )
        # Float32, because some samplers cut whole timesteps from what is looked up here, and the
        # last bit decides between two of them.
        self._log_sigmas = np.log(self.sigmas.astype(np.float32))

    @property
    def length(self) -> int:
        """How many timesteps the model was trained with."""
        return len(self.alphas_cumprod)

    def product_before(self, timestep: int) -> float:
        """The product at a timestep that a step goes down to; below 0, where the run ends."""
        if timestep >= 0:
            return float(self.alphas_cumprod[timestep])
        return 1.0 if self.record.set_alpha_to_one else float(self.alphas_cumprod[0])

    def sigma_at(self, timesteps: Vector) -> Vector:
        """Sigma at any timesteps, between whole ones linearly."""
        return np.interp(timesteps, np.arange(self.length), self.sigmas)

    def timestep_at(self, sigmas: Vector) -> Vector:
        """The timesteps of any sigmas, between whole ones linearly in log sigma."""
        table = self._log_sigmas
        logs = np.log(np.maximum(sigmas, 1e-10))
        low = np.clip(np.searchsorted(table, logs, side="right") - 1, 0, len(table) - 2)
        share = np.clip((table[low] - logs) / (table[low] - table[low + 1]), 0, 1)
        found: Vector = (1 - share) * low + share * (low + 1)
        return found

    def levels(
        self,
        grid: Grid,
        *,
        steps: int,
        spacing: str,
        sigmas: str | None = None,
        final: str = "zero",
        timesteps: Sequence[float] | None = None,
        custom_sigmas: Sequence[float] | None = None,
    ) -> Levels:
        """The levels of a run of `steps`, or of the listed timesteps or sigmas.

        `custom_sigmas` ends with the level the run ends at, as in diffusers: n + 1 values for n
        steps. Raises BadInput.
        """
        if custom_sigmas is not None:
            listed = falling("sigmas", custom_sigmas, least=2, most=MAX_SIGMA)
            return Levels(timesteps=self.timestep_at(listed[:-1]), sigmas=listed)
        if timesteps is not None:
            spaced = falling("timesteps", timesteps, least=1, most=self.length - 1)
        else:
            spaced = self.space(grid, steps, spacing)
        levels = self.sigma_at(spaced)
        if grid.log_linear and self.record.interpolation_type == "log_linear":
            levels = exponential(self.sigmas[0], self.sigmas[-1], len(spaced) + 1)
        if sigmas is not None:
            ends = levels if grid.spaced_ends else self.sigmas[::-1]
            spaced, levels = self._family(sigmas, grid, steps, ends)
        end = 0.0 if final == "zero" else self.sigmas[0]
        return Levels(timesteps=spaced, sigmas=np.append(levels, end)[: len(spaced) + 1])

    def space(self, grid: Grid, steps: int, spacing: str) -> Vector:
        """`steps` falling timesteps, as table 2 of Lin et al. (2023) has them. Raises BadInput."""
        check_steps(steps)
        points = steps + 1 if grid.extra and spacing != "trailing" else steps
        if points > self.length:
            raise BadInput(
                f"steps={steps} does not fit on {self.length} timesteps with {spacing} spacing; "
                f"ask for at most {steps - (points - self.length)}"
            )
        if spacing == "linspace":
            spaced: Vector = np.linspace(0.0, self.length - 1, points)[::-1]
            spaced = spaced.round() if grid.whole else spaced
        elif spacing == "leading":
            spaced = np.arange(points, dtype=np.float64)[::-1] * (self.length // points)
            spaced = spaced + self.record.steps_offset
        elif spacing == DISTILLED:
            spaced = self._distilled(steps)
        else:  # trailing
            spaced = np.arange(self.length, 0.0, -self.length / steps).round() - 1
        spaced = spaced[:steps]
        if spaced[0] > self.length - 1:
            raise BadInput(
                f"steps={steps} with leading spacing and steps_offset={self.record.steps_offset} "
                f"starts at timestep {spaced[0]:g}, past the last, {self.length - 1}; "
                "ask for fewer steps or trailing spacing"
            )
        return spaced

    def _distilled(self, steps: int) -> Vector:
        """Timesteps spread over those a consistency model was distilled on (Luo et al., 2023)."""
        most = min(DISTILLATION_STEPS, self.length)
        if steps > most:
            raise BadInput(f"steps={steps} is more than the {most} of distillation; ask for 1 to 8")
        learnt = np.arange(most, 0.0, -1) * (self.length // most) - 1
        return learnt[np.floor(np.linspace(0, most, steps, endpoint=False)).astype(np.int64)]

    def _family(self, name: str, grid: Grid, steps: int, ends: Vector) -> tuple[Vector, Vector]:
        """Timesteps and sigmas of a named family of sigmas."""
        high, low = float(ends[0]), float(ends[-1])
        if name == "karras":
            levels = karras(low, high, steps)
            found = self.timestep_at(levels)
            if grid.karras == "exact":
                return found, levels
            cosine = self.record.beta_schedule == "squaredcos_cap_v2"
            if cosine and grid.karras == "rounded-unless-cosine":
                return np.floor(found), levels
            return found.round(), levels
        if name in ("exponential", "beta"):
            levels = (
                exponential(low, high, steps) if name == "exponential" else beta(low, high, steps)
            )
            found = self.timestep_at(levels)
            return np.floor(found) if grid.others == "floor" else found, levels
        if name == "sgm-uniform":
            found = np.linspace(self.length - 1, 0, steps + 1)[:-1]
            levels = np.exp(np.interp(found, np.arange(self.length), np.log(self.sigmas)))
            return found, levels
        if name == "ays":
            levels = align_your_steps(steps)[:-1]
            return self.timestep_at(levels), levels
        raise BadInput(f"sigmas={name!r} is not known; {way_out(name, SIGMAS)}")


def karras(low: float, high: float, steps: int) -> Vector:
    """Falling sigmas, equation 5 of Karras et al. (2022), rho = 7."""
    ramp = np.linspace(0, 1, steps)
    levels: Vector = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return levels


def exponential(low: float, high: float, steps: int) -> Vector:
    """Falling sigmas, evenly spaced in log sigma."""
    levels: Vector = np.exp(np.linspace(math.log(high), math.log(low), steps))
    return levels


def beta(low: float, high: float, steps: int) -> Vector:
    """Falling sigmas at quantiles of the distribution Beta(0.6, 0.6) (Lee et al., 2024)."""
    return low + beta_quantile(1 - np.linspace(0, 1, steps), 0.6) * (high - low)


def align_your_steps(steps: int) -> Vector:
    """`steps` + 1 falling sigmas, `AYS_SDXL` interpolated linearly in log sigma."""
    places = np.linspace(0, 1, len(AYS_SDXL))
    levels: Vector = np.exp(np.interp(np.linspace(0, 1, steps + 1), places, np.log(AYS_SDXL)))
    return levels


def beta_quantile(share: Vector, shape: float) -> Vector:
    """The quantile function of the symmetric distribution Beta(shape, shape), shape < 1.

    Lower half: the distribution function is x^a / (a B) times the power series of DLMF 8.17.7,
    which rises steeply and concavely in y = x^a; Newton's method in y from the left therefore
    climbs to its root without passing it. Upper half: by symmetry.
    """
    a = shape
    mass = a * math.gamma(a) ** 2 / math.gamma(2 * a)  # a B(a, a)
    lower = np.minimum(share, 1 - share)
    orders = np.arange(1, 60)
    series = np.cumprod((orders - a) / orders) * a / (orders + a)
    y = lower * mass
    for _ in range(30):
        x = y ** (1 / a)
        powers = x[:, None] ** orders
        value = y * (1 + powers @ series) / mass
        slope = (1 - x) ** (a - 1) / mass
        y = np.clip(y + (lower - value) / slope, 0, 0.5**a)
    x = y ** (1 / a)
    return np.where(share <= 0.5, x, 1 - x)


def training_alphas_cumprod(record: ScheduleRecord) -> Vector:
    """The products of 1 - beta [timesteps]: those of PyTorch in float32, to the bit.

    With zero terminal SNR they are rescaled in float64 (algorithm 1 of Lin et al., 2023): in
    float32 the least of them lose half of their digits.
    """
    # torch.cumprod accumulates in float64 on a CPU.
    bar = np.cumprod(1 - _betas(record), dtype=np.float64).astype(np.float32).astype(np.float64)
    if not record.rescale_betas_zero_snr:
        return bar
    root = np.sqrt(bar)
    rescaled: Vector = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return rescaled


def _betas(record: ScheduleRecord) -> NDArray[np.float32]:
    count = record.num_train_timesteps
    if record.trained_betas is not None:
        return np.array(record.trained_betas, np.float32)
    if record.beta_schedule == "linear":
        return _linspace(record.beta_start, record.beta_end, count)
    if record.beta_schedule == "scaled_linear":
        return _linspace(record.beta_start**0.5, record.beta_end**0.5, count) ** 2
    # Nichol and Dhariwal (2021), equation 17
    bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(count)], np.float32)


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """torch.linspace in float32: from both ends to the middle, each value rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(count - 1))
    places = np.arange(count)
    rising = float(first) + step * places
    from_end = float(last) - step * (count - 1 - places)
    return np.where(places < count // 2, rising, from_end).astype(np.float32)


def falling(name: str, values: Sequence[float], *, least: int, most: float) -> Vector:
    """Listed numbers as an array. Raises BadInput unless they fall, from `most` or less to 0."""
    if not least <= len(values) <= MAX_STEPS + least - 1:
        raise BadInput(
            f"{name} lists {len(values)} values; give {least} to {MAX_STEPS + least - 1}"
        )
    listed = np.array([float(value) for value in values])
    if not np.isfinite(listed).all() or listed.min() < 0 or listed.max() > most:
        wrong = next(v for v in listed if not (math.isfinite(v) and 0 <= v <= most))
        raise BadInput(f"{name} lists {wrong:g}; give numbers of 0 to {most:g}")
    for before, after in pairwise(listed):
        if after >= before:
            raise BadInput(f"{name} lists {after:g} after {before:g}; give falling numbers")
    return listed


def check_steps(steps: int) -> None:
    """Raise BadInput unless `steps` is a whole number from 1 to `MAX_STEPS`."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise BadInput(f"steps={steps!r} is no whole number; give 1 to {MAX_STEPS}")
    if not 1 <= steps <= MAX_STEPS:
        raise BadInput(f"steps={steps} is out of range; give 1 to {MAX_STEPS}")


def _check(record: ScheduleRecord) -> None:
    wrong = f"the schedule of this model ({record.scheduler}) has "
    way = "; export the checkpoint again"
    count = record.num_train_timesteps
    if not 2 <= count <= MAX_TRAIN_TIMESTEPS:
        raise BadInput(f"{wrong}num_train_timesteps={count}, not 2 to {MAX_TRAIN_TIMESTEPS}{way}")
    if record.beta_schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise BadInput(
            f"{wrong}beta_schedule={record.beta_schedule!r}, not linear, scaled_linear or "
            f"squaredcos_cap_v2{way}"
        )
    if record.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise BadInput(
            f"{wrong}prediction_type={record.prediction_type!r}, not epsilon, v_prediction or "
            f"sample{way}"
        )
    for name in ("beta_start", "beta_end"):
        value = getattr(record, name)
        if not 0 < value < 1:
            raise BadInput(f"{wrong}{name}={value}, not between 0 and 1{way}")
    if record.trained_betas is not None:
        if len(record.trained_betas) != count:
            raise BadInput(
                f"{wrong}{len(record.trained_betas)} trained_betas for {count} timesteps{way}"
            )
        if not all(0 < value < 1 for value in record.trained_betas):
            raise BadInput(f"{wrong}trained_betas that are not all between 0 and 1{way}")
    if record.interpolation_type not in ("linear", "log_linear"):
        raise BadInput(
            f"{wrong}interpolation_type={record.interpolation_type!r}, not linear or "
            f"log_linear{way}"
        )
    if record.final_sigmas_type not in ("zero", "sigma_min"):
        raise BadInput(
            f"{wrong}final_sigmas_type={record.final_sigmas_type!r}, not zero or sigma_min{way}"
        )
    if not 0 <= record.steps_offset < count:
        raise BadInput(f"{wrong}steps_offset={record.steps_offset}, not 0 to {count - 1}{way}")

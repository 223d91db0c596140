"""Euler's method, with and without fresh noise."""

import math

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Row, Run, basis, exploding


def euler(run: Run) -> list[Step]:
    """Algorithm 2 of Karras et al. (2022) with Euler steps alone.

    Churn raises the noise before a step. As in diffusers, the model is asked before the churn, not
    after it, and its answer kept.
    """
    x, _, noise = basis(1)
    options = run.options
    steps = []
    for timestep, sigma, after in run.each():
        gamma = min(options.s_churn / run.count, math.sqrt(2) - 1)
        if not options.s_tmin <= sigma <= options.s_tmax:
            gamma = 0.0
        raised = sigma * (1 + gamma)
        churned = x + options.s_noise * math.sqrt(raised**2 - sigma**2) * noise
        slope = (churned - _denoised(run, sigma, raised, churned)) / raised
        steps.append(exploding(run, timestep, sigma, [churned + (after - raised) * slope]))
    return steps


def _denoised(run: Run, sigma: float, raised: float, churned: Row) -> Row:
    """What the answer at `sigma` means for a latent whose noise was raised since."""
    x, q, _ = basis(1)
    shift: Row = {
        "epsilon": (churned - x) - (raised / sigma - 1) * (x - q),
        "v_prediction": (churned - x) / (sigma**2 + 1),
        "sample": 0 * x,
    }[run.prediction]
    denoised: Row = q + shift
    return denoised


def euler_ancestral(run: Run) -> list[Step]:
    """Euler steps to below the next level, and fresh noise up to it (k-diffusion's ancestral)."""
    x, q, noise = basis(1)
    steps = []
    for timestep, sigma, after in run.each():
        down, up = ancestral(sigma, after)
        slope = (x - q) / sigma
        row = x + (down - sigma) * slope + up * noise
        steps.append(exploding(run, timestep, sigma, [row]))
    return steps


def ancestral(sigma: float, after: float) -> tuple[float, float]:
    """The level to step down to, and the noise that leads from there up to `after`.

    The noise has the variance of DDPM's step, `after^2 (sigma^2 - after^2) / sigma^2`.
    """
    return after**2 / sigma, after / sigma * math.sqrt(sigma**2 - after**2)

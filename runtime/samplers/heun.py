"""Samplers that evaluate the model twice a step, at its start and further down."""

import math

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.euler import ancestral
from diffusion_rt.runtime.samplers.run import Run, basis, exploding


def heun(run: Run) -> list[Step]:
    """Algorithm 2 of Karras et al. (2022) without churn; the last step is Euler's."""
    x, half, q, _ = basis(2)
    levels = list(run.each())
    steps = []
    for i, (timestep, sigma, after) in enumerate(levels):
        change = (after - sigma) / sigma * (x - q)
        steps.append(exploding(run, timestep, sigma, [x + change, x + change / 2]))
        if i + 1 < len(levels):
            slope = (x - q) / after
            ahead = half + (after - sigma) / 2 * slope
            steps.append(exploding(run, levels[i + 1][0], after, [ahead, 0 * half]))
    return steps


def dpm_2(run: Run) -> list[Step]:
    """The midpoint method in log sigma: DPM-Solver-2 of Karras et al. (2022), as k-diffusion's."""
    return _midpoint(run, fresh=False)


def dpm_2_ancestral(run: Run) -> list[Step]:
    """The midpoint method to below the next level, and fresh noise up to it."""
    return _midpoint(run, fresh=True)


def _midpoint(run: Run, *, fresh: bool) -> list[Step]:
    x, first, q, noise = basis(2)
    steps = []
    for timestep, sigma, after in run.each():
        down, up = ancestral(sigma, after) if fresh else (after, 0.0)
        slope = (x - q) / sigma
        if down == 0:
            steps.append(exploding(run, timestep, sigma, [x - sigma * slope, 0 * x]))
            continue
        middle = math.sqrt(sigma * down)
        steps.append(exploding(run, timestep, sigma, [x + (middle - sigma) * slope, x]))
        ahead = first + (down - sigma) / middle * (x - q) + up * noise
        steps.append(exploding(run, run.timestep_at(middle), middle, [ahead, 0 * x]))
    return steps


def dpmpp_2s_ancestral(run: Run) -> list[Step]:
    """DPM-Solver++(2S) of Lu et al. (2022b), algorithm 1 with r = 1/2, made ancestral.

    As in k-diffusion: a step to below the next level, and fresh noise up to it.
    """
    x, first, q, noise = basis(2)
    steps = []
    for timestep, sigma, after in run.each():
        down, up = ancestral(sigma, after)
        if down == 0:
            steps.append(exploding(run, timestep, sigma, [q, 0 * x]))
            continue
        middle = math.sqrt(sigma * down)
        keep = middle / sigma
        steps.append(exploding(run, timestep, sigma, [keep * x + (1 - keep) * q, x]))
        keep = down / sigma
        ahead = keep * first + (1 - keep) * q + up * noise
        steps.append(exploding(run, run.timestep_at(middle), middle, [ahead, 0 * x]))
    return steps

"""DPM-Solver++: exponential integrators of the denoised latent, in lambda = -log sigma.

Lu et al. (2022b), "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models". Over a step of length h in lambda, exp(-h) is the ratio of the two sigmas.
"""

import math

import numpy as np

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Row, Run, basis, preserving


def dpmpp_2m(run: Run) -> list[Step]:
    """Algorithm 2, which uses the denoised latent of the step before."""
    return _multistep(run, 2, fresh=False)


def dpmpp_3m(run: Run) -> list[Step]:
    """The multistep method of third order."""
    return _multistep(run, 3, fresh=False)


def dpmpp_2m_sde(run: Run) -> list[Step]:
    """The multistep method of second order for the SDE (appendix B)."""
    return _multistep(run, 2, fresh=True)


def dpmpp_3m_sde(run: Run) -> list[Step]:
    """The multistep method of third order for the SDE, as k-diffusion has it."""
    return _multistep(run, 3, fresh=True)


def _multistep(run: Run, order: int, *, fresh: bool) -> list[Step]:
    x, *past, q, noise = basis(order)
    levels = run.levels
    steps = []
    for i, (timestep, before, after) in enumerate(run.each(), start=run.begin):
        used = min(i - run.begin + 1, order)
        if run.count < 15:
            used = min(used, run.count - i)
        if after == 0 or math.isclose(after, before):
            used = 1
        # For the SDE the integrals of the denoised are those of the ODE over twice the length.
        decay = (after / before) ** (2 if fresh else 1)
        keep = levels.alpha[i + 1] / levels.alpha[i] * decay
        up = levels.sigma[i + 1] * math.sqrt(max(1 - decay, 0.0)) if fresh else 0.0
        ahead = keep * x + up * noise
        known = levels.sigmas[i - used + 1 : i + 2]
        for weight, denoised in zip(_weights(known, decay), [q, *past], strict=False):
            ahead = ahead + levels.alpha[i + 1] * weight * denoised
        rows = [ahead, q, *past[: order - 2]]
        steps.append(preserving(run, timestep, levels.alpha[i], levels.sigma[i], rows))
    return steps


def _weights(sigmas: Row, decay: float) -> list[float]:
    """Of the denoised latents at `sigmas` but the last, latest first: their shares of a step.

    The step leads from the last but one of `sigmas` to the last. The denoised latent is a
    polynomial in lambda through its values; its derivatives are integrated against an exponential
    that falls to `decay` (equation 4.1).
    """
    first = 1 - decay
    if len(sigmas) == 2:
        return [first]
    lengths = np.log(sigmas[:-1] / sigmas[1:])
    h, r0 = lengths[-1], lengths[-2] / lengths[-1]
    if len(sigmas) == 3:
        # The midpoint form of the paper: half of `first` stands for the second integral.
        return [first + first / 2 / r0, -first / 2 / r0]
    span = -math.log(decay)
    second = 1 - first / span
    third = 0.5 - second / span
    r1 = lengths[-3] / h
    # Divided differences of the last two and of the two before them
    near, far = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    slope = near + r0 / (r0 + r1) * (near - far)
    bend = (near - far) / (r0 + r1)
    weights: list[float] = (np.array([first, 0, 0]) + second * slope + third * bend).tolist()
    return weights


def dpmpp_2s(run: Run) -> list[Step]:
    """The singlestep methods (algorithm 1), with one evaluation for each noise level.

    As in diffusers, levels come in blocks of the order's length. Each step leads from the first
    level of its block to the next one, by the method of the order that its place in the block
    allows; for the third order it is the one without the middle difference.
    """
    order = run.options.order
    x, *parts, q, _ = basis(order)
    levels = run.levels
    places = [min(i % order, i - run.begin) for i in range(run.count)]
    if levels.sigmas[-1] == 0:
        places[-1] = 0
    steps = []
    for i, (timestep, _, _) in enumerate(run.each(), start=run.begin):
        if places[i] == 0:
            block = [j for j in range(i, min(i + order, run.count)) if places[j] == j - i]
            rows = [_begun(run, i, j, x, q) for j in block]
        else:
            start = i - places[i]
            rows = [parts[0] + levels.alpha[i + 1] * _share(run, start, i) * q, *parts[1:]]
        rows = [*rows, *([0 * x] * (order - len(rows)))]
        steps.append(preserving(run, timestep, levels.alpha[i], levels.sigma[i], rows))
    return steps


def _begun(run: Run, start: int, last: int, x: Row, q: Row) -> Row:
    """The part of a step from level `start` to the one after `last` that is known at its start."""
    alphas, sigmas = run.levels.alpha, run.levels.sigmas
    decay = sigmas[last + 1] / sigmas[start]
    weight = 1 - decay - (_share(run, start, last) if last > start else 0.0)
    part: Row = alphas[last + 1] * (decay / alphas[start] * x + weight * q)
    return part


def _share(run: Run, start: int, last: int) -> float:
    """The share of the denoised latent at `last` in a step from `start` to the level after it."""
    sigmas = run.levels.sigmas
    first = 1 - float(sigmas[last + 1] / sigmas[start])
    h = math.log(sigmas[start] / sigmas[last + 1])
    integral = first / 2 if last == start + 1 else 1 - first / h
    return integral * h / math.log(sigmas[start] / sigmas[last])

"""UniPC: a predictor and a corrector that share each evaluation of the model.

Zhao et al. (2023), "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models": the form that predicts the denoised latent, with B(h) = exp(h) - 1, its "B2".
"""

import numpy as np

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Row, Run, basis, preserving


def unipc(run: Run) -> list[Step]:
    """S holds the predicted latent, the part of its correction known before it, past denoised ones.

    Each evaluation first corrects the latent it was made for, then predicts the next from that.
    """
    order = run.options.order
    x, correction, *past, q, _ = basis(order + 1)
    levels = run.levels
    share = 0.0  # of q in the correction
    steps = []
    for i, (timestep, before, after) in enumerate(run.each(), start=run.begin):
        corrected = x if i == run.begin else correction + share * q
        used = min(i - run.begin + 1, order, run.count - i)
        known = [q, *past]
        base = after / before * levels.alpha[i + 1] / levels.alpha[i] * corrected
        ahead = base + levels.alpha[i + 1] * _sum(_predictor(levels.sigmas, i, used), known)
        partial, share = 0 * x, 0.0
        if i + 1 < run.count:
            *shares, last = _corrector(levels.sigmas, i, used)
            partial = base + levels.alpha[i + 1] * _sum(shares, known)
            share = float(levels.alpha[i + 1]) * last
        rows = [ahead, partial, *known[: order - 1]]
        steps.append(preserving(run, timestep, levels.alpha[i], levels.sigma[i], rows))
    return steps


def _sum(shares: list[float], rows: list[Row]) -> Row:
    total: Row = sum(
        (share * row for share, row in zip(shares, rows, strict=False)), start=0 * rows[0]
    )
    return total


def _predictor(sigmas: Row, i: int, used: int) -> list[float]:
    """Shares of the denoised latents at levels i, i - 1, … in the one predicted for i + 1."""
    first = 1 - float(sigmas[i + 1] / sigmas[i])
    if used == 1:
        return [first]
    places = _places(sigmas, i, used)
    if used == 2:
        weights = np.array([0.5])
    else:
        powers = places[None, :] ** np.arange(used - 1)[:, None]
        weights = np.linalg.solve(powers, _moments(sigmas, i, used - 1))
    slopes = weights / places
    return [first * (1 - float(slopes.sum())), *(first * slopes).tolist()]


def _corrector(sigmas: Row, i: int, used: int) -> list[float]:
    """The same for the latent corrected, with the share of the denoised latent at i + 1 last."""
    first = 1 - float(sigmas[i + 1] / sigmas[i])
    if used == 1:
        return [first / 2, first / 2]
    places = np.append(_places(sigmas, i, used), 1.0)
    powers = places[None, :] ** np.arange(used)[:, None]
    slopes = np.linalg.solve(powers, _moments(sigmas, i, used)) / places
    shares = first * slopes
    return [first - float(shares.sum()), *shares.tolist()]


def _places(sigmas: Row, i: int, used: int) -> Row:
    """Levels i - 1, i - 2, … in lambda, counted from level i in lengths of the step."""
    places: Row = np.log(sigmas[i] / sigmas[i - used + 1 : i][::-1])
    places /= np.log(sigmas[i] / sigmas[i + 1])
    return places


def _moments(sigmas: Row, i: int, count: int) -> Row:
    """The right-hand side of the order conditions (equation 11): k! phi_(k+1)(h) h / B(h)."""
    h = float(np.log(sigmas[i + 1] / sigmas[i]))
    phi, factorial, moments = np.expm1(h) / h, 1.0, []
    for k in range(1, count + 1):
        phi = (phi if k == 1 else phi / h) - 1 / factorial
        moments.append(phi * factorial / np.expm1(h))
        factorial *= k + 1
    return np.array(moments)

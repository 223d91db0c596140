"""Linear multistep methods: a polynomial through past slopes, integrated over the step."""

import numpy as np
from numpy.polynomial import polynomial
from numpy.polynomial.legendre import leggauss

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Row, Run, basis, exploding, preserving

_NODES, _WEIGHTS = leggauss(2)  # exact for polynomials of degree 3


def lms(run: Run) -> list[Step]:
    """Adams and Bashforth's method in sigma, on levels that are not even (k-diffusion's LMS)."""
    order = run.options.order
    x, *past, q, _ = basis(order)
    sigmas = run.levels.sigmas
    steps = []
    for i, (timestep, sigma, after) in enumerate(run.each(), start=run.begin):
        slopes = [(x - q) / sigma, *past]
        used = min(i - run.begin + 1, order)
        known = sigmas[i - used + 1 : i + 1][::-1]
        shares = _lagrange_integrals(known, sigma, after)
        ahead = x + sum(share * slope for share, slope in zip(shares, slopes, strict=False))
        steps.append(exploding(run, timestep, sigma, [ahead, *slopes[: order - 1]]))
    return steps


def _lagrange_integrals(points: Row, start: float, end: float) -> list[float]:
    """Integrals of the polynomials that are 1 at one of the points and 0 at the others."""
    places = (start + end) / 2 + (end - start) / 2 * _NODES
    integrals = []
    for i, point in enumerate(points):
        others = np.delete(points, i)
        values = np.prod((places[:, None] - others) / (point - others), axis=1)
        integrals.append(float(_WEIGHTS @ values * (end - start) / 2))
    return integrals


def deis(run: Run) -> list[Step]:
    """DEIS with polynomials in log rho, rho = sigma (Zhang and Chen, 2023, section 3.3)."""
    order = run.options.order
    x, *past, q, _ = basis(order)
    alphas, sigmas, rhos = run.levels.alpha, run.levels.sigma, run.levels.sigmas
    steps = []
    for i, (timestep, rho, after) in enumerate(run.each(), start=run.begin):
        epsilons = [(x - alphas[i] * q) / sigmas[i], *past]
        used = min(i - run.begin + 1, order)
        if run.count < 15:
            used = min(used, run.count - i)
        if after == 0:
            used = 1
        shares = _log_integrals(np.log(rhos[i - used + 1 : i + 1][::-1]), rho, after)
        change = sum(share * epsilon for share, epsilon in zip(shares, epsilons, strict=False))
        ahead = alphas[i + 1] * (x / alphas[i] + change)
        rows = [ahead, *epsilons[: order - 1]]
        steps.append(preserving(run, timestep, alphas[i], sigmas[i], rows))
    return steps


def _log_integrals(points: Row, start: float, end: float) -> list[float]:
    """The same for polynomials in log rho, integrated over rho; `points` are logarithms."""
    if len(points) == 1:
        return [end - start]
    integrals = []
    for i, point in enumerate(points):
        others = np.delete(points, i)
        p = polynomial.polyfromroots(others) / np.prod(point - others)
        # The integral of p(u) exp(u) is (p - p' + p'') exp(u).
        first, second = polynomial.polyder(p), polynomial.polyder(p, 2)
        p = polynomial.polyadd(polynomial.polysub(p, first), second)
        ends = polynomial.polyval(np.log([start, end]), p) * [-start, end]
        integrals.append(float(ends.sum()))
    return integrals

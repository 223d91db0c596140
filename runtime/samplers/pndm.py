"""PNDM: linear multistep and Runge-Kutta methods on the manifold of the training schedule.

Liu et al. (2022), "Pseudo Numerical Methods for Diffusion Models on Manifolds". What is combined
are the model's raw outputs, of epsilon or of v.
"""

import math
from itertools import pairwise

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Row, Run, basis, preserving
from diffusion_rt.runtime.schedule import LEAST_ALPHA

_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams and Bashforth's weights on even steps, the latest output first."""


def pndm(run: Run) -> list[Step]:
    """Linear multistep (PLMS), or after a Runge-Kutta start where `skip_prk_steps` is off."""
    if run.options.skip_prk_steps:
        return _multistep_alone(run)
    if run.count - run.begin < 4:
        raise BadInput(
            f"sampler pndm with skip_prk_steps off takes 4 steps or more, not "
            f"{run.count - run.begin}; ask for more steps"
        )
    return _runge_kutta_first(run)


def _multistep_alone(run: Run) -> list[Step]:
    """Algorithm 2 with its first step made by Euler's method and once corrected.

    S is the latent and past outputs, the latest first; between the first two evaluations the third
    place keeps the latent the run began with.
    """
    x, *past, q, _ = basis(4)
    timesteps, stride = run.whole_timesteps()[run.begin :], run.schedule.length // run.count
    first = timesteps[0]
    output = _output(run, first, x, q)
    rows = [_moved(run, first, first - stride, x, output), output, x, 0 * x]
    steps = [_step(run, first, rows)]
    if len(timesteps) == 1:
        return steps
    again = timesteps[1]
    mean = (_output(run, again, x, q) + past[0]) / 2
    rows = [_moved(run, again + stride, again, past[1], mean), past[0], 0 * x, 0 * x]
    steps.append(_step(run, again, rows))
    for i, timestep in enumerate(timesteps[1:], start=1):
        steps.append(_adams(run, timestep, timestep - stride, x, q, past, min(i + 1, 4)))
    return steps


def _runge_kutta_first(run: Run) -> list[Step]:
    """Three steps of the classical Runge-Kutta method (algorithm 1), then linear multistep.

    S is the latent, one more, and three past outputs. The one more is the latent that the
    Runge-Kutta step began with and, before its last evaluation, what is known of its result.
    """
    x, kept, *past, q, _ = basis(5)
    timesteps, stride = run.whole_timesteps()[run.begin :], run.schedule.length // run.count
    half = stride // 2
    steps = []
    for start, end in pairwise(timesteps[:4]):
        output = _output(run, start, x, q)
        rows = [_moved(run, start, start - half, x, output), x, output, *past[:2]]
        steps.append(_step(run, start, rows))

        middle = end + half
        output = _output(run, middle, x, q)
        steps.append(_step(run, middle, [_moved(run, start, middle, kept, output), kept, *past]))

        # The output of the evaluation before is read off the latent that it led to.
        keep, push = _transfer(run, start, middle)
        second, third = (x - keep * kept) / push, output
        known = past[0] / 6 + second / 3 + third / 3
        rows = [
            _moved(run, start, middle - half, kept, third),
            _moved(run, start, end, kept, known),
            *past,
        ]
        steps.append(_step(run, middle, rows))

        _, push = _transfer(run, start, end)
        fourth = _output(run, end, x, q)
        steps.append(_step(run, end, [kept + push / 6 * fourth, 0 * x, *past]))
    for timestep in timesteps[3:]:
        steps.append(_adams(run, timestep, timestep - stride, x, q, past, 4, kept))
    return steps


def _adams(
    run: Run, start: int, end: int, x: Row, q: Row, past: list[Row], order: int, *more: Row
) -> Step:
    """One evaluation of the linear multistep method; `more` are the places it does not use."""
    outputs = [_output(run, start, x, q), *past]
    combined: Row = sum(
        (weight * row for weight, row in zip(_ADAMS[order - 1], outputs, strict=False)),
        start=0 * x,
    )
    rows = [_moved(run, start, end, x, combined), *(0 * row for row in more), *outputs[:3]]
    return _step(run, start, rows)


def _output(run: Run, timestep: int, x: Row, q: Row) -> Row:
    """The model's raw output at a timestep, from the latent and the denoised latent."""
    alpha, sigma = _level(run, timestep)
    output: Row = (x - alpha * q if run.prediction == "epsilon" else alpha * x - q) / sigma
    return output


def _moved(run: Run, start: int, end: int, latent: Row, output: Row) -> Row:
    """A latent at `start` moved to `end` by an output."""
    keep, push = _transfer(run, start, end)
    moved: Row = keep * latent + push * output
    return moved


def _transfer(run: Run, start: int, end: int) -> tuple[float, float]:
    """What a move keeps of the latent and takes of the output (equation 11)."""
    alpha, sigma = _level(run, start)
    alpha_end, sigma_end = _level(run, end)
    keep, push = alpha_end / alpha, sigma_end - sigma * alpha_end / alpha
    if run.prediction == "v_prediction":
        return keep + push * sigma, push * alpha
    return keep, push


def _level(run: Run, timestep: int) -> tuple[float, float]:
    product = max(run.schedule.product_before(timestep), LEAST_ALPHA)
    return math.sqrt(product), math.sqrt(1 - product)


def _step(run: Run, timestep: int, rows: list[Row]) -> Step:
    return preserving(run, timestep, *_level(run, timestep), rows)

"""A plan of steps: what a sampler is to everything that runs it, in numbers alone."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]
Matrix = NDArray[np.float64]

MAX_ORDER = 5
"""No sampler carries more latents than this from one evaluation to the next."""

_BLOCK = 16384  # elements, so that the sums of a step stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One evaluation of the model, and what becomes of the latents after it.

    S is the stack of K latents carried. The model sees `c_in * S[0]` at `timestep` and gives
    `guided`; the denoised latent it stands for is `q = c_skip * S[0] + c_out * guided` (the
    preconditioning of Karras et al., 2022, table 1). Then `S' = matrix @ [S ; q ; noise]`, where
    the noise is drawn afresh if `noise` says so.
    """

    timestep: float
    sigma: float  # noise to signal of S[0]; infinite where the signal is gone (zero terminal SNR)
    c_in: float
    c_skip: float
    c_out: float
    noise: bool
    matrix: Matrix  # [K, K + 2], read-only
    weights: Matrix = field(init=False)  # [K, K + 2] over [S ; guided ; noise]: q written out

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64, ndmin=2)
        order = len(matrix)
        assert 1 <= order <= MAX_ORDER, order
        assert matrix.shape == (order, order + 2), matrix.shape
        assert self.noise or not matrix[:, -1].any(), "noise is used and not drawn"
        assert np.isfinite([self.timestep, self.c_in, self.c_skip, self.c_out]).all()
        assert np.isfinite(matrix).all()
        assert self.sigma >= 0
        weights = matrix.copy()
        weights[:, 0] += matrix[:, order] * self.c_skip
        weights[:, order] *= self.c_out
        weights[np.abs(weights) < 1e-14] = 0  # what is left where terms cancel
        for name, table in (("matrix", matrix), ("weights", weights)):
            table.flags.writeable = False
            object.__setattr__(self, name, table)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """All the evaluations of one denoise, and the latent they start from.

    From nothing, S[0] starts as `start * noise`; from an encoded picture as
    `picture[0] * encoded + picture[1] * noise`. The rest of S starts as zeros. After the last step
    S[0] is the result.
    """

    sampler: str
    start: float
    picture: tuple[float, float]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        assert self.steps, "a plan without steps"
        assert len({len(step.matrix) for step in self.steps}) == 1, "K changes along the plan"
        assert np.isfinite([self.start, *self.picture]).all()

    @property
    def order(self) -> int:
        """K, how many latents are carried from one evaluation to the next."""
        return len(self.steps[0].matrix)

    @property
    def timesteps(self) -> NDArray[np.float32]:
        """What the model is told at each evaluation, float32 [n]."""
        return np.array([step.timestep for step in self.steps], np.float32)

    @property
    def coefficients(self) -> NDArray[np.float32]:
        """`c_in`, `c_skip` and `c_out` of each evaluation, float32 [n, 3]."""
        rows = [(step.c_in, step.c_skip, step.c_out) for step in self.steps]
        return np.array(rows, np.float32)

    @property
    def matrices(self) -> Matrix:
        """The matrix of each evaluation, float64 [n, K, K + 2]."""
        return np.stack([step.matrix for step in self.steps])

    @property
    def weights(self) -> Matrix:
        """The matrices over [S ; guided ; noise], with q written out, float64 [n, K, K + 2]."""
        return np.stack([step.weights for step in self.steps])

    @property
    def draws(self) -> NDArray[np.bool_]:
        """Whether each evaluation draws fresh noise, bool [n]."""
        return np.array([step.noise for step in self.steps])

    def first(self, noise: Latents, encoded: Latents | None = None) -> Latents:
        """The stack before the first step, float32 [K, …].

        `noise` is standard normal, `encoded` a picture's latents; both float32 [images, c, h, w].
        """
        state = np.zeros((self.order, *noise.shape), np.float32)
        if encoded is None:
            np.multiply(noise, self.start, out=state[0])
        else:
            np.multiply(noise, self.picture[1], out=state[0])
            state[0] += encoded * np.float32(self.picture[0])
        return state

    def between(self, start: int, end: int | None = None) -> Self:
        """The evaluations from `start` up to `end`, as of a sequence.

        The second part of a cut goes on from the whole stack that the first part left, so that the
        two make the same picture as the whole; its own `start` and `picture` mean nothing.
        """
        return replace(self, steps=self.steps[start:end])


def advance(state: Latents, guided: Latents, noise: Latents | None, step: Step) -> Latents:
    """The stack after one step, in the place of the one before it, which is gone: float32 [K, …].

    `state` is that stack, contiguous; `guided` [...] the model's guided prediction; `noise` [...] a
    fresh standard normal draw, or None where the step draws none. Sums are float64 and rounded
    once. Each element is computed alike, whatever lies around it, so a batch equals its images to
    the bit.
    """
    assert step.noise == (noise is not None), "noise is drawn exactly where the step says so"
    assert state.flags.c_contiguous, "the stack is changed in place"
    stack = state.reshape(len(state), -1)
    sources = [*stack, guided.reshape(-1)]
    if noise is not None:
        sources.append(noise.reshape(-1))
    rows = [
        [(weight, source) for weight, source in zip(weights, sources, strict=False) if weight != 0]
        for weights in step.weights.tolist()
    ]
    sums, product = np.zeros((len(stack), _BLOCK)), np.empty(_BLOCK)
    for start in range(0, stack.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, stack.shape[1]))
        size = block.stop - start
        for total, terms in zip(sums[:, :size], rows, strict=True):
            for place, (weight, source) in enumerate(terms):
                into = product[:size] if place else total
                np.multiply(source[block], weight, out=into, dtype=np.float64)
                if place:
                    total += into
        stack[:, block] = sums[:, :size]
    return state

"""The denoising loop: noise in, latents out, one evaluation of the UNet after the other."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import not_finite
from diffusion_rt.engines.protocol import Denoiser, Evaluations
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.noise import NoiseSource
from diffusion_rt.runtime.plan import Plan, advance

Array = NDArray[np.float32]


class Predictor(Protocol):
    """What the loop asks of a UNet that is prepared for a plan."""

    def predict(self, evaluation: int, latent: Array, scale: float) -> NDArray[Any]:
        """The prediction at one evaluation for `latent * scale`; the next call may overwrite it."""
        ...


def denoise(
    unet: Predictor,
    plan: Plan,
    noise: Sequence[NoiseSource],
    latent_shape: tuple[int, int, int],
    guidance: "Guidance",
    report: Callable[[int, int], None],
) -> Array:
    """Latents [images, c, h, w] float32, one image for each noise source.

    `unet` is prepared for this plan. `report(done, total)` is called around every evaluation; what
    it raises ends the loop. Raises Fault where the latents stop being finite.
    """
    state = plan.first(draw(noise, latent_shape))
    for index, step in enumerate(plan.steps):
        report(index, len(plan.steps))
        guided = guidance(unet.predict(index, state[0], step.c_in))
        fresh = draw(noise, latent_shape) if step.noise else None
        state = advance(state, guided, fresh, step)
        if not np.isfinite(state[0]).all():
            raise not_finite(index + 1, len(plan.steps))
    report(len(plan.steps), len(plan.steps))
    latents: Array = state[0]
    return latents


def denoise_on_device(
    denoiser: Denoiser,
    conditioning: Conditioning,
    plan: Plan,
    noise: Sequence[NoiseSource],
    latent_shape: tuple[int, int, int],
    guidance: "Guidance",
    report: Callable[[int, int], None],
) -> Array:
    """The same latents as `denoise` makes, to rounding, from a backend's own loop.

    Noise is drawn while the device computes, in the order in which `denoise` draws it.
    """
    start = plan.first(draw(noise, latent_shape))[0]
    return denoiser(
        conditioning={
            "context": conditioning.context,
            "text_embeds": conditioning.text_embeds,
            "time_ids": conditioning.time_ids,
        },
        evaluations=Evaluations(
            timesteps=plan.timesteps,
            c_in=plan.coefficients[:, 0],
            weights=plan.weights,
            draws=plan.draws,
        ),
        guidance_scale=guidance.scale,
        guidance_rescale=guidance.rescale,
        start=start,
        noise=(draw(noise, latent_shape) for step in plan.steps if step.noise),
        report=report,
    )


def draw(noise: Sequence[NoiseSource], shape: tuple[int, int, int]) -> Array:
    """Standard normal noise [images, c, h, w], each image from its own source."""
    return np.stack([source.normal((1, *shape))[0] for source in noise])


class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022), with the rescale of Lin et al. (2023)."""

    def __init__(self, scale: float, rescale: float) -> None:
        """`rescale` is phi of Lin et al., section 3.4; a scale of at most 1 turns guidance off."""
        self._scale = np.float32(scale)
        self._rescale = np.float32(rescale)

    @property
    def scale(self) -> float:
        """The guidance scale, as float32 has it."""
        return float(self._scale)

    @property
    def rescale(self) -> float:
        """Phi of the rescale, as float32 has it."""
        return float(self._rescale)

    @property
    def rows(self) -> int:
        """UNet rows for each image: unconditional and conditional, or only the latter."""
        return 2 if self._scale > 1 else 1

    def __call__(self, prediction: NDArray[Any]) -> Array:
        """One prediction [images, …] float32 from `rows * images`, unconditional first."""
        if self.rows == 1:
            return prediction.astype(np.float32)
        images = len(prediction) // 2
        unconditional, conditional = prediction[:images], prediction[images:]
        guided: Array = np.subtract(conditional, unconditional, dtype=np.float32)
        guided *= self._scale
        guided += unconditional
        if self._rescale > 0:
            guided *= self._factor(conditional, guided)
        return guided

    def _factor(self, conditional: NDArray[Any], guided: Array) -> Array:
        """What brings each image's deviation back towards that of its conditional prediction."""
        axes = tuple(range(1, guided.ndim))
        wanted = conditional.astype(np.float32).std(axes, ddof=1, keepdims=True)
        ratio = wanted / guided.std(axes, ddof=1, keepdims=True)
        factor: Array = self._rescale * ratio + (1 - self._rescale)
        return factor

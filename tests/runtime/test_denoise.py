import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import Fault
from diffusion_rt.runtime.denoise import Guidance, denoise, draw
from diffusion_rt.runtime.noise import make_noise
from diffusion_rt.runtime.plan import Plan, Step

Array = NDArray[np.float32]
SHAPE = (4, 3, 5)


def rows(seed: int, images: int = 2) -> Array:
    return np.random.default_rng(seed).standard_normal((2 * images, *SHAPE), np.float32)


@given(
    st.floats(1.001, 100),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_guidance_is_that_of_diffusers(
    scale: float, rescale: float, seed: int, images: int
) -> None:
    prediction = rows(seed, images)
    ours = Guidance(scale, rescale)(prediction)
    plain, prompted = torch.from_numpy(prediction.copy()).chunk(2)
    theirs = plain + scale * (prompted - plain)
    if rescale:
        theirs = rescale_noise_cfg(theirs, prompted, guidance_rescale=rescale)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_without_guidance_a_prediction_is_taken_as_it_is(scale: float) -> None:
    guidance = Guidance(scale, 0.7)
    assert guidance.rows == 1
    prediction = rows(0)
    np.testing.assert_array_equal(guidance(prediction), prediction)


def test_each_image_draws_from_its_own_noise() -> None:
    together = draw([make_noise("cpu", seed) for seed in (3, 8)], SHAPE)
    alone = draw([make_noise("cpu", 8)], SHAPE)
    np.testing.assert_array_equal(together[1:], alone)


class Counting:
    """Stands for a prepared UNet: predicts a fixed value and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.asked: list[tuple[int, float]] = []

    def predict(self, evaluation: int, latent: Array, scale: float) -> Array:
        self.asked.append((evaluation, scale))
        return np.full((2 * len(latent), *latent.shape[1:]), self.value, np.float32)


def two_steps(noisy: bool) -> Plan:
    half = np.array([[0.5, 0.5, 0.25 if noisy else 0.0]])
    step = Step(timestep=9.0, sigma=2.0, c_in=0.5, c_skip=1.0, c_out=-2.0, noise=noisy, matrix=half)
    return Plan(sampler="test", start=2.0, picture=(1.0, 0.0), steps=(step, step))


@pytest.mark.parametrize("noisy", [False, True])
def test_the_loop_does_what_the_plan_says(noisy: bool) -> None:
    unet = Counting(0.25)
    heard: list[tuple[int, int]] = []
    result = denoise(
        unet,
        two_steps(noisy),
        [make_noise("cpu", 5)],
        SHAPE,
        Guidance(3.0, 0.0),
        lambda done, total: heard.append((done, total)),
    )
    source = make_noise("cpu", 5)
    latent = 2 * source.normal((1, *SHAPE))
    for _ in range(2):
        denoised = latent - 2 * 0.25
        latent = 0.5 * latent + 0.5 * denoised
        if noisy:
            latent = latent + 0.25 * source.normal((1, *SHAPE))
    np.testing.assert_allclose(result, latent, rtol=1e-6, atol=1e-6)
    assert unet.asked == [(0, 0.5), (1, 0.5)]
    assert heard == [(0, 2), (1, 2), (2, 2)]


def test_latents_that_are_not_finite_end_the_loop() -> None:
    with pytest.raises(Fault, match="evaluation 1 of 2"):
        denoise(
            Counting(np.nan),
            two_steps(False),
            [make_noise("cpu", 0)],
            SHAPE,
            Guidance(3.0, 0.0),
            lambda done, total: None,
        )


def test_what_progress_raises_ends_the_loop_before_the_next_evaluation() -> None:
    unet = Counting(0.0)

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(unet, two_steps(False), [make_noise("cpu", 0)], SHAPE, Guidance(3.0, 0.0), stop)
    assert len(unet.asked) == 1

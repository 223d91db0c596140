"""The samplers of the training schedule itself: DDIM and DDPM."""

import math

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Run, basis, preserving


def ddim(run: Run) -> list[Step]:
    """Equation 12 of Song et al. (2021), "Denoising Diffusion Implicit Models".

    As in diffusers a step goes down by an even stride, even where linspace spacing rounds to
    another; listed timesteps are followed one by one.
    """
    x, q, noise = basis(1)
    schedule, timesteps = run.schedule, run.whole_timesteps()
    stride = schedule.length // run.count
    steps = []
    for i in range(run.begin, run.count):
        before = timesteps[i] - stride
        if run.listed:
            before = timesteps[i + 1] if i + 1 < run.count else -1
        product = float(schedule.alphas_cumprod[timesteps[i]])
        ahead = schedule.product_before(before)
        variance = (1 - ahead) / (1 - product) * (1 - product / ahead)
        spread = run.options.eta * math.sqrt(variance)
        alpha, sigma = run.trained_level(timesteps[i])
        epsilon = (x - alpha * q) / sigma
        direction = math.sqrt(max(1 - ahead - spread**2, 0.0))
        row = math.sqrt(ahead) * q + direction * epsilon + spread * noise
        steps.append(preserving(run, timesteps[i], alpha, sigma, [row]))
    return steps


def ddpm(run: Run) -> list[Step]:
    """Equation 7 of Ho et al. (2020), "Denoising Diffusion Probabilistic Models"."""
    x, q, noise = basis(1)
    schedule, timesteps = run.schedule, run.whole_timesteps()
    steps = []
    for i in range(run.begin, run.count):
        before = timesteps[i + 1] if i + 1 < run.count else -1
        product = float(schedule.alphas_cumprod[timesteps[i]])
        ahead = float(schedule.alphas_cumprod[before]) if before >= 0 else 1.0
        beta = 1 - product / ahead
        row = math.sqrt(ahead) * beta / (1 - product) * q
        row = row + math.sqrt(product / ahead) * (1 - ahead) / (1 - product) * x
        if timesteps[i] > 0:
            variance = (1 - ahead) / (1 - product) * beta
            row = row + math.sqrt(max(variance, 1e-20)) * noise
        alpha, sigma = run.trained_level(timesteps[i])
        steps.append(preserving(run, timesteps[i], alpha, sigma, [row]))
    return steps

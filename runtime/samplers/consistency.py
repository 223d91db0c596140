"""Samplers for models distilled to a few steps: LCM and TCD."""

import math

import numpy as np

from diffusion_rt.runtime.plan import Step
from diffusion_rt.runtime.samplers.run import Run, basis, preserving

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def lcm(run: Run) -> list[Step]:
    """Algorithm 3 of Luo et al. (2023), "Latent Consistency Models"."""
    x, q, noise = basis(1)
    timesteps = run.whole_timesteps()
    steps = []
    for i in range(run.begin, run.count):
        alpha, sigma = run.trained_level(timesteps[i])
        scaled = timesteps[i] * TIMESTEP_SCALING
        size = math.hypot(scaled, SIGMA_DATA)
        row = scaled / size * q + (SIGMA_DATA / size) ** 2 * x
        if i + 1 < run.count:
            ahead = float(run.schedule.alphas_cumprod[timesteps[i + 1]])
            row = math.sqrt(ahead) * row + math.sqrt(1 - ahead) * noise
        steps.append(preserving(run, timesteps[i], alpha, sigma, [row]))
    return steps


def tcd(run: Run) -> list[Step]:
    """Algorithm 4 of Zheng et al. (2024), "Trajectory Consistency Distillation"; eta is gamma."""
    x, q, noise = basis(1)
    eta, products = run.options.eta, run.schedule.alphas_cumprod
    timesteps = run.whole_timesteps()
    steps = []
    for i in range(run.begin, run.count):
        alpha, sigma = run.trained_level(timesteps[i])
        last = i + 1 == run.count
        ahead = 0 if last else timesteps[i + 1]
        # Float32, as PyTorch multiplies: the last bit decides between two timesteps.
        target = int(np.float32(1 - eta) * np.float32(ahead))
        alpha_s, sigma_s = math.sqrt(products[target]), math.sqrt(1 - products[target])
        row = alpha_s * q + sigma_s * (x - alpha * q) / sigma
        if eta > 0 and not last:
            ratio = float(products[ahead] / products[target])
            row = math.sqrt(ratio) * row + math.sqrt(1 - ratio) * noise
        steps.append(preserving(run, timesteps[i], alpha, sigma, [row]))
    return steps

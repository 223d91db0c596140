"""Samplers: functions that turn the noise levels of a run into a plan of steps."""

from diffusion_rt.runtime.samplers.make import make_plan, sampler_name
from diffusion_rt.runtime.samplers.registry import SAMPLERS

__all__ = ["SAMPLERS", "make_plan", "sampler_name"]

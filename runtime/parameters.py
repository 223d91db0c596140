"""A request as AUTOMATIC1111's `parameters` text: for other programs to read, not for us.

Prompt, `Negative prompt: …`, then one line of `Name: value` pairs, where a value with a comma, a
colon or a line feed is quoted as JSON.
"""

import json
from typing import Any

from diffusion_rt.runtime.request import Request

SAMPLERS = {
    "euler": "Euler",
    "euler-a": "Euler a",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-3m-sde": "DPM++ 3M SDE",
    "dpmpp-2s": "DPM++ 2S",
    "dpmpp-2s-a": "DPM++ 2S a",
    "dpmpp-3m": "DPM++ 3M",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "heun": "Heun",
    "lms": "LMS",
    "pndm": "PLMS",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm-uniform": "SGM Uniform",
    "ays": "Align Your Steps",
}
EMPHASES = {"no-norm": "No norm", "none": "None"}


def parameters(request: Request, model: str, model_sha256: str, program: str) -> str:
    """The text for one picture; a choice that `request` leaves open is left out."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    found = {
        **_settings(request),
        "Model hash": model_sha256[:10],
        "Model": model,
        "Version": program,
    }
    pairs = (f"{name}: {_quoted(str(value))}" for name, value in found.items() if value is not None)
    lines.append(", ".join(pairs))
    return "\n".join(lines)


def _settings(request: Request) -> dict[str, Any]:
    listed = isinstance(request.sigmas, tuple) or request.timesteps is not None
    scale, size = request.guidance_scale, (request.width, request.height)
    sampler, family = _sampler(request)
    return {
        "Steps": request.num_inference_steps,
        "Sampler": SAMPLERS.get(sampler or "", sampler),
        "Schedule type": None if listed else SCHEDULES.get(str(family), "Automatic"),
        "CFG scale": None if scale is None else f"{scale:.10g}",
        "Seed": request.seed,
        "Size": None if None in size else f"{size[0]}x{size[1]}",
        # Counted from the last layer, 1 being that itself; SDXL is trained with the one before.
        "Clip skip": request.clip_skip + 2 if request.clip_skip else None,
        "Eta": f"{request.eta:.10g}" if request.eta else None,
        "CFG rescale": f"{request.guidance_rescale:.10g}" if request.guidance_rescale else None,
        "Prompt 2": request.prompt_2 or None,
        "Negative prompt 2": request.negative_prompt_2 or None,
        "RNG": request.rng.upper(),
        "Emphasis": EMPHASES.get(request.emphasis),
    }


def _sampler(request: Request) -> tuple[str | None, Any]:
    """The sampler without a family of sigmas that ends its name, and the family."""
    for family in SCHEDULES:
        if request.sampler and request.sampler.endswith(f"-{family}"):
            return request.sampler.removesuffix(f"-{family}"), family
    return request.sampler, request.sigmas


def _quoted(value: str) -> str:
    if any(mark in value for mark in ",:\n"):
        return json.dumps(value, ensure_ascii=False)
    return value

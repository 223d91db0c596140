"""A picture drawn with diffusers, as its documentation does it: the peer of `generate`."""

import argparse

import diffusers
import torch
from diffusers import StableDiffusionXLPipeline


def main() -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    for name, kind in (
        ("model", str),
        ("output", str),
        ("width", int),
        ("height", int),
        ("steps", int),
        ("guidance-scale", float),
        ("seed", int),
        ("threads", int),
    ):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--scheduler")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    pipeline = StableDiffusionXLPipeline.from_pretrained(found.model, torch_dtype=torch.float32)
    if found.scheduler is not None:
        scheduler = getattr(diffusers, found.scheduler)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    image = pipeline(
        found.prompt,
        width=found.width,
        height=found.height,
        num_inference_steps=found.steps,
        guidance_scale=found.guidance_scale,
        generator=torch.Generator().manual_seed(found.seed),
    ).images[0]
    image.save(found.output)


if __name__ == "__main__":
    main()

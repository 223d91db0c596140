"""Which kernels the plans of a model launch, at the sizes that are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffusion_rt.engines.device.bucket import loop_kernels
from diffusion_rt.engines.device.protocol import AT_ONCE
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.engines.spec import Precision
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant


@dataclass(frozen=True, slots=True)
class Target:
    """What to build for."""

    model: ModelFolder
    buckets: Sequence[tuple[int, int]]  # width, height in pixels
    images: Sequence[int]  # denoised together
    tokens: int
    precision: Precision
    rows: Sequence[int] = (2,)  # of the UNet for each image: 2 with guidance, else 1


def target_of(
    model: ModelFolder,
    precision: Precision,
    *,
    buckets: Sequence[tuple[int, int]] = (),
    images: Sequence[int] = (1,),
    rows: Sequence[int] = (),
) -> Target:
    """Buckets and rows as given, or the model's own; prompts of one chunk."""
    defaults = model.manifest.defaults
    rows = rows or (2 if defaults.guidance_scale > 1 else 1,)
    sizes = buckets or ((defaults.width, defaults.height),)
    tokens = max(encoder.max_length for encoder in model.manifest.text_encoders)
    return Target(model, sizes, images, tokens, precision, rows)


def runs(target: Target) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Every graph, at every size that a request of these buckets runs it, each once."""
    model, tokens = target.model, target.tokens
    factor = model.manifest.vae.factor
    for encoder in model.manifest.text_encoders:
        for batch in (1, 2):
            yield encoder.graph, {"batch": batch, "tokens": encoder.max_length}
    batches = dict.fromkeys(rows * images for images in target.images for rows in target.rows)
    for batch in batches:
        yield "unet_prompt", {"batch": batch, "tokens": tokens}
        yield "unet_timestep", {"n": batch * min(AT_ONCE, model.manifest.defaults.steps)}
    for width, height in target.buckets:
        latents = {"height": height // factor, "width": width // factor}
        for batch in batches:
            yield "unet_step", {"batch": batch, "tokens": tokens, **latents}
        yield "vae_decoder", {"batch": 1, **latents}


def needed(target: Target, chip: Chip) -> tuple[Variant, ...]:
    """Every kernel that may be launched on a chip, whichever tactics are chosen."""
    precision = target.precision
    names = {v.name for v in loop_kernels(precision, precision).values()}
    names |= {v.name for v in loop_kernels("float32", "float32").values()}
    for graph, sizes in runs(target):
        # float32 too, which a VAE falls back to.
        for asked in (None, "float32") if graph.startswith("vae_") else (None,):
            dtype = arithmetic(target.model, graph, asked, precision)
            program = Program(plan_of(target.model, graph, sizes, dtype), chip)
            names |= {v.name for found in program.options for w in found.ways for v in w.variants}
    return tuple(CATALOGUE[name] for name in sorted(names))

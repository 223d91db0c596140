"""What every contender is asked to do, in the same words."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from diffusion_rt.runtime.request import Request

PROMPT = "a large red circle above a small blue square on a green background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Pictures of one prompt at settings that nobody may choose otherwise."""

    prompt: str
    width: int
    height: int
    images: int
    steps: int
    sampler: str
    guidance_scale: float
    seed: int

    @property
    def request(self) -> Request:
        """The case as our pipeline is asked for it. Raises BadInput."""
        return Request(
            prompt=self.prompt,
            width=self.width,
            height=self.height,
            num_images_per_prompt=self.images,
            num_inference_steps=self.steps,
            sampler=self.sampler,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
        )

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return self.request.seeds(first=0)

    @property
    def setting(self) -> dict[str, str | int | float]:
        """What a record says of the case; the prompt and the seed cost nothing."""
        return {
            "size": f"{self.width}x{self.height}",
            "images": self.images,
            "steps": self.steps,
            "sampler": self.sampler,
            "guidance_scale": self.guidance_scale,
        }

    def __str__(self) -> str:
        """Such as `1 x 128x128, 20 steps of euler`."""
        plural = "s" if self.steps > 1 else ""
        size = f"{self.width}x{self.height}"
        return f"{self.images} x {size}, {self.steps} step{plural} of {self.sampler}"


def cases(
    *,
    prompt: str,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    steps: Sequence[int],
    samplers: Sequence[str],
    guidance_scale: float,
    seed: int,
    own: tuple[int, int] | None = None,
) -> list[Case]:
    """Every combination, each checked as a request is; sizes are (width, height). BadInput.

    With `own` a size, not all of them: every size with the first number of images, and every
    number at that size.
    """
    drawn = list(product(sizes, batches))
    if own is not None:
        axes = [*product(sizes, batches[:1]), *product([own], batches)]
        drawn = list(dict.fromkeys(axes))
    found = [
        Case(
            prompt=prompt,
            width=width,
            height=height,
            images=images,
            steps=count,
            sampler=sampler,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        for sampler, count, ((width, height), images) in product(samplers, steps, drawn)
    ]
    for case in found:
        _ = case.request
    return found

"""Optimisation profiles: for each graph the sizes it may run at, and those it is tuned for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from diffusion_rt.engines.device.protocol import AT_ONCE
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import Manifest
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.buckets import Bucket
from diffusion_rt.engines.typed_json import Between, Line, Symbol

MAX_SIZE = 1 << 20
MAX_BATCH = 64  # pictures in one evaluation
MAX_CHUNKS = 16  # of a prompt, each as long as the text encoder reads at once

# The text encoders run by chunks of prompts, eight at a time at most, whatever the batch is.
TEXT_BATCH = (1, 2, 8)
TYPICAL_TIMESTEPS = 60  # rows of `unet_timestep`: 30 steps with guidance

_RANGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From the smallest to the largest size of a dimension, and the one to be fast at."""

    min: Annotated[int, Between(1, MAX_SIZE)]
    opt: Annotated[int, Between(1, MAX_SIZE)]
    max: Annotated[int, Between(1, MAX_SIZE)]

    def __post_init__(self) -> None:
        """Refuse sizes out of order."""
        if not all(type(n) is int and 1 <= n <= MAX_SIZE for n in (self.min, self.opt, self.max)):
            raise BadInput(f"{self}: wants three sizes from 1 to {MAX_SIZE}")
        if not self.min <= self.opt <= self.max:
            low, middle, high = sorted((self.min, self.opt, self.max))
            raise BadInput(
                f"{self} is out of order, wants MIN:OPT:MAX with MIN <= OPT <= MAX; "
                f"try {low}:{middle}:{high}"
            )

    def __str__(self) -> str:
        """As the command line spells it."""
        return f"{self.min}:{self.opt}:{self.max}"

    def times(self, factor: int) -> "Range":
        """All three sizes multiplied."""
        return Range(min=self.min * factor, opt=self.opt * factor, max=self.max * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One profile of one graph: a range for every symbol of its inputs."""

    name: Line  # the bucket, such as 1024x1024, or `all`
    sizes: Mapping[Symbol, Range]

    def shapes(self, spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, the best and the largest shape of a tensor."""
        return (
            spec.resolve({name: size.min for name, size in self.sizes.items()}),
            spec.resolve({name: size.opt for name, size in self.sizes.items()}),
            spec.resolve({name: size.max for name, size in self.sizes.items()}),
        )

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every symbol's size lies in its range; symbols it does not know are ignored."""
        return all(
            wanted.min <= sizes[name] <= wanted.max
            for name, wanted in self.sizes.items()
            if name in sizes
        )


def fixed(size: int) -> Range:
    """A dimension of one size."""
    return Range(min=size, opt=size, max=size)


def parse_range(text: str, what: str, limit: int) -> Range:
    """`MIN:OPT:MAX`, or one number for all three; `what` names the flag. Raises BadInput."""
    numbers = f"{text}:{text}:{text}" if text.isdecimal() else text
    match = _RANGE.fullmatch(numbers)
    if match is None:
        raise BadInput(f"{what}: got {shown(text)}, wants MIN:OPT:MAX such as 1:1:4, or one number")
    sizes = [int(part) for part in match.groups()]
    if not all(1 <= size <= limit for size in sizes):
        raise BadInput(f"{what}: got {shown(text)}, wants sizes from 1 to {limit}")
    try:
        return Range(min=sizes[0], opt=sizes[1], max=sizes[2])
    except BadInput as wrong:
        raise BadInput(f"{what}: {wrong}") from None


def parse_batch(text: str) -> Range:
    """Pictures drawn at once, as `--batch` spells them."""
    return parse_range(text, "--batch", MAX_BATCH)


def parse_chunks(text: str) -> Range:
    """Chunks of a prompt, as `--chunks` spells them: three are 231 tokens of SDXL's 77."""
    return parse_range(text, "--chunks", MAX_CHUNKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What engines are to be able to do: picture sizes, batch, length of prompts."""

    buckets: tuple[Bucket, ...]
    batch: Range
    chunks: Range

    def __post_init__(self) -> None:
        """Refuse what no engine could hold."""
        if not self.buckets:
            raise BadInput("no bucket to build for; name one, such as --buckets 1024x1024")
        for what, found, limit in (
            ("batch", self.batch, MAX_BATCH),
            ("chunks", self.chunks, MAX_CHUNKS),
        ):
            if found.max > limit:
                raise BadInput(f"{what} {found}, wants sizes from 1 to {limit}")

    @property
    def rows(self) -> Range:
        """Rows of the UNet: two for each picture with guidance, one without."""
        return Range(min=self.batch.min, opt=2 * self.batch.opt, max=2 * self.batch.max)


def profiles_for(manifest: Manifest, graph: str, coverage: Coverage) -> tuple[Profile, ...]:
    """The profiles of one graph, in the order of the buckets.

    `unet_step` and the VAE get one for each bucket; the VAE works on one picture at a time. Raises
    BadInput where a symbol of the graph's inputs is not known here.
    """
    factor = manifest.vae.factor
    length = max(encoder.max_length for encoder in manifest.text_encoders)
    tokens = coverage.chunks.times(length)
    profiles: Sequence[Profile]
    match graph:
        case "unet_step":
            profiles = [
                _of_bucket(bucket, factor, batch=coverage.rows, tokens=tokens)
                for bucket in coverage.buckets
            ]
        case "vae_decoder":
            profiles = [_of_bucket(bucket, factor, batch=fixed(1)) for bucket in coverage.buckets]
        case "vae_encoder":
            profiles = [_of_bucket(bucket, 1, batch=fixed(1)) for bucket in coverage.buckets]
        case "unet_prompt":
            rows = Range(min=1, opt=coverage.rows.opt, max=coverage.rows.max)
            profiles = [Profile(name="all", sizes={"batch": rows, "tokens": tokens})]
        case "unet_timestep":
            most = AT_ONCE * coverage.rows.max
            timesteps = Range(min=1, opt=TYPICAL_TIMESTEPS, max=most)
            profiles = [Profile(name="all", sizes={"n": timesteps})]
        case _:
            low, typical, high = TEXT_BATCH
            chunk = fixed(_length(manifest, graph))
            batch = Range(min=low, opt=typical, max=high)
            profiles = [Profile(name="all", sizes={"batch": batch, "tokens": chunk})]
    _check_symbols(manifest, graph, profiles[0])
    return tuple(profiles)


def _of_bucket(bucket: Bucket, factor: int, **others: Range) -> Profile:
    if bucket.width % factor or bucket.height % factor:
        raise BadInput(f"bucket {bucket}: this model wants multiples of {factor} pixels")
    height, width = fixed(bucket.height // factor), fixed(bucket.width // factor)
    return Profile(name=str(bucket), sizes={**others, "height": height, "width": width})


def _length(manifest: Manifest, graph: str) -> int:
    for encoder in manifest.text_encoders:
        if encoder.graph == graph:
            return encoder.max_length
    raise BadInput(f"graph {shown(graph)}: no text encoder of this model; export it again")


def _check_symbols(manifest: Manifest, graph: str, profile: Profile) -> None:
    for variant in manifest.graphs.get(graph, {}).values():
        used = {d for spec in variant.inputs for d in spec.shape if isinstance(d, str)}
        if unknown := used - profile.sizes.keys():
            raise BadInput(
                f"{variant.file}: its inputs have a dimension {', '.join(sorted(unknown))}, known "
                f"are {', '.join(profile.sizes)}; export the model again"
            )

"""Buckets: the picture sizes that engines are built for, each with an optimisation profile."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_rt.engines.errors import BadInput, shown

STEP = 8  # pixels per latent
MAX_SIDE = 8192
MAX_BUCKETS = 64
MAX_TEXT = 2000  # characters of a list that is read

_SIZE = re.compile(r"([0-9]{1,6})[x×X]([0-9]{1,6})")


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A picture's width and height in pixels; multiples of 8, or BadInput."""

    width: int
    height: int

    def __post_init__(self) -> None:
        """Check both sides."""
        for name, side in (("width", self.width), ("height", self.height)):
            if type(side) is not int or not STEP <= side <= MAX_SIDE:
                raise BadInput(f"bucket {name} {shown(side)}, wants {STEP} to {MAX_SIDE} pixels")
            if side % STEP:
                below = max(STEP, side - side % STEP)
                raise BadInput(
                    f"bucket {self}: {name} {side} is no multiple of {STEP}; try {below} or "
                    f"{below + STEP}"
                )

    def __str__(self) -> str:
        """Such as `1152x896`, width first."""
        return f"{self.width}x{self.height}"


SDXL = tuple(
    Bucket(width, height)
    for width, height in (
        (1024, 1024),
        (1152, 896),
        (896, 1152),
        (1216, 832),
        (832, 1216),
        (1344, 768),
        (768, 1344),
        (1536, 640),
        (640, 1536),
    )
)

# Multi-aspect training of SDXL (Podell et al. 2023, appendix I): short side -> long sides. The
# paper leaves 1344x704 out and has 704x1344; its authors' own sampling program has both, as here.
_TRAINED = {
    512: (2048, 1984, 1920, 1856),
    576: (1792, 1728, 1664),
    640: (1600, 1536),
    704: (1472, 1408, 1344),
    768: (1344, 1280),
    832: (1216, 1152),
    896: (1152, 1088),
    960: (1088, 1024),
}
SDXL_ALL = (
    Bucket(1024, 1024),
    *(
        bucket
        for short, longs in _TRAINED.items()
        for long in longs
        for bucket in (Bucket(long, short), Bucket(short, long))
    ),
)
LISTS = {"sdxl": SDXL, "sdxl-all": SDXL_ALL}


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """The buckets that a list names: `sdxl`, `sdxl-all`, `1024x1024,640x1536`, or a mixture.

    In the order they are named, each once. Raises BadInput.
    """
    if len(text) > MAX_TEXT:
        raise BadInput(f"--buckets: {len(text)} characters, at most {MAX_TEXT} are read")
    found: dict[Bucket, None] = {}
    for word in (part.strip() for part in text.split(",")):
        if word in LISTS:
            found |= dict.fromkeys(LISTS[word])
            continue
        match = _SIZE.fullmatch(word)
        if match is None:
            raise BadInput(
                f"--buckets: {shown(word)}, wants {', '.join(LISTS)} or sizes such as 1152x896"
            )
        found[Bucket(int(match[1]), int(match[2]))] = None
    if len(found) > MAX_BUCKETS:
        raise BadInput(f"--buckets: {len(found)} sizes, at most {MAX_BUCKETS} fit one engine")
    return tuple(found)


def spelt(buckets: Sequence[Bucket]) -> str:
    """The shortest text that `parse_buckets` reads as these buckets, in this order or another."""
    rest = dict.fromkeys(buckets)
    words = []
    for name in ("sdxl-all", "sdxl"):
        if rest.keys() >= set(LISTS[name]):
            words.append(name)
            rest = {bucket: None for bucket in rest if bucket not in LISTS[name]}
    return ",".join([*words, *map(str, rest)])


def nearest(bucket: Bucket, buckets: Sequence[Bucket]) -> Bucket:
    """The one of `buckets` that is most like `bucket`: by its proportions, then by its area."""

    def distance(other: Bucket) -> tuple[float, float]:
        turn = math.log(other.width * bucket.height / (other.height * bucket.width))
        growth = math.log(other.width * other.height / (bucket.width * bucket.height))
        return abs(turn), abs(growth)

    return min(buckets, key=distance)


def not_built(
    bucket: Bucket, buckets: Sequence[Bucket], command: str, *, what: str = "the engines are"
) -> BadInput:
    """The error for a size without an engine: the nearest that has one, the command that builds it.

    `command` is what to type for all of `buckets` and this one; `what` is built for `buckets`.
    """
    return BadInput(
        f"{bucket}: {what} built for {spelt(buckets)}; the nearest of these is "
        f"{nearest(bucket, buckets)}, or run: {command}"
    )

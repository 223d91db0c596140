"""The work in one step of SDXL and in one decode: every distinct shape, and how often it occurs.

From the published configuration of SDXL base 1.0: channels 320, 640, 1280 with 0, 2 and 10
transformer layers, heads of 64, and the decoder of its VAE.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

LEVELS = ((320, 0), (640, 2), (1280, 10))  # channels, and transformer layers of a block
HEAD = 64
CONTEXT = 77  # tokens of one prompt
GROUPS = 32
DECODER = (512, 512, 256, 128)


@dataclass(frozen=True, slots=True)
class Gemm:
    """[m, k] times [k, n]; 1x1 convolutions too."""

    m: int
    n: int
    k: int

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class Conv:
    """A 3x3 convolution over NHWC; height and width are those of its output."""

    images: int
    height: int
    width: int
    channels: int
    filters: int
    stride: int = 1

    @property
    def flop(self) -> int:
        return 2 * self.images * self.height * self.width * 9 * self.channels * self.filters


@dataclass(frozen=True, slots=True)
class Attention:
    """Without a mask."""

    images: int
    heads: int
    queries: int
    keys: int
    width: int = HEAD

    @property
    def flop(self) -> int:
        return 4 * self.images * self.heads * self.queries * self.keys * self.width


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Over the columns of each row."""

    rows: int
    columns: int

    @property
    def flop(self) -> int:
        """Not counted: bytes are what it takes."""
        return 0


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Over NHWC in 32 groups, with or without the SiLU behind it."""

    images: int
    pixels: int
    channels: int
    silu: bool

    @property
    def flop(self) -> int:
        """Not counted: bytes are what it takes."""
        return 0


Shape = Gemm | Conv | Attention | LayerNorm | GroupNorm
Shapes = Counter[Shape]
S = TypeVar("S", bound=Shape)


class _Walk:
    """Where in the network the walk stands."""

    def __init__(self, images: int, height: int, width: int) -> None:
        self.found: Shapes = Counter()
        self.images, self.height, self.width = images, height, width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def conv(self, channels: int, filters: int, stride: int = 1) -> None:
        self.height //= stride
        self.width //= stride
        place = (self.images, self.height, self.width)
        self.found[Conv(*place, channels, filters, stride)] += 1

    def upsample(self, channels: int) -> None:
        self.height *= 2
        self.width *= 2
        self.conv(channels, channels)

    def norm(self, channels: int, silu: bool) -> None:
        self.found[GroupNorm(self.images, self.pixels, channels, silu)] += 1

    def gemm(self, n: int, k: int, count: int = 1) -> None:
        self.found[Gemm(self.images * self.pixels, n, k)] += count

    def resnet(self, channels: int, filters: int) -> None:
        self.norm(channels, True)
        self.conv(channels, filters)
        self.norm(filters, True)
        self.conv(filters, filters)
        if channels != filters:
            self.gemm(filters, channels)

    def transformer(self, channels: int, layers: int) -> None:
        """Query, key and value of self attention in one product; cross attention's are cached."""
        if not layers:
            return
        heads = channels // HEAD
        self.norm(channels, False)
        self.gemm(channels, channels, 2)
        self.found[LayerNorm(self.images * self.pixels, channels)] += 3 * layers
        self.gemm(3 * channels, channels, layers)
        self.found[Attention(self.images, heads, self.pixels, self.pixels)] += layers
        self.found[Attention(self.images, heads, self.pixels, CONTEXT)] += layers
        self.gemm(channels, channels, 3 * layers)
        self.gemm(8 * channels, channels, layers)
        self.gemm(channels, 4 * channels, layers)


def step(width: int, height: int, rows: int = 2) -> Shapes:
    """One evaluation of the UNet for a picture of that size; `rows` is 2 with guidance.

    Left out is what does not change between steps: keys and values of the prompt, and the
    projections of the timestep.
    """
    walk = _Walk(rows, height // 8, width // 8)
    channels = LEVELS[0][0]
    walk.conv(4, channels)
    skips = [channels]
    for level, (filters, layers) in enumerate(LEVELS):
        for _ in range(2):
            walk.resnet(channels, filters)
            walk.transformer(filters, layers)
            channels = filters
            skips.append(channels)
        if level + 1 < len(LEVELS):
            walk.conv(channels, channels, 2)
            skips.append(channels)
    walk.resnet(channels, channels)
    walk.transformer(channels, LEVELS[-1][1])
    walk.resnet(channels, channels)
    for level, (filters, layers) in reversed(list(enumerate(LEVELS))):
        for _ in range(3):
            walk.resnet(channels + skips.pop(), filters)
            walk.transformer(filters, layers)
            channels = filters
        if level:
            walk.upsample(channels)
    walk.norm(channels, True)
    walk.conv(channels, 4)
    return walk.found


def decode(width: int, height: int) -> Shapes:
    """One decode of the VAE."""
    walk = _Walk(1, height // 8, width // 8)
    channels = DECODER[0]
    walk.conv(4, channels)
    walk.resnet(channels, channels)
    walk.norm(channels, False)
    walk.gemm(3 * channels, channels)
    walk.found[Attention(1, 1, walk.pixels, walk.pixels, channels)] += 1
    walk.gemm(channels, channels)
    walk.resnet(channels, channels)
    for level, filters in enumerate(DECODER):
        for _ in range(3):
            walk.resnet(channels, filters)
            channels = filters
        if level + 1 < len(DECODER):
            walk.upsample(channels)
    walk.norm(channels, True)
    walk.conv(channels, 3)
    return walk.found


def flop(shapes: Shapes) -> int:
    """Of all of them, a product and a sum counted as two."""
    return sum(shape.flop * count for shape, count in shapes.items())


def of_kind(shapes: Shapes, kind: type[S]) -> Iterable[tuple[S, int]]:
    """Those of one kind with their counts, the most work first."""
    found = [(shape, count) for shape, count in shapes.items() if isinstance(shape, kind)]
    return sorted(found, key=lambda item: -item[0].flop * item[1])

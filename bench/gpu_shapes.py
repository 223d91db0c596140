"""The work in one step of a UNet and in one decode: every distinct shape, and how often it occurs.

By default those of SDXL base 1.0, from its published configuration: channels 320, 640, 1280 with 0,
2 and 10 transformer layers, heads of 64, and the decoder of its VAE.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

HEAD = 64
CONTEXT = 77  # tokens of one prompt
DECODER = (512, 512, 256, 128)


@dataclass(frozen=True, slots=True)
class Network:
    """A UNet as far as its work goes: channels, transformer layers and heads, level by level."""

    levels: tuple[tuple[int, int, int], ...]
    middle: int  # transformer layers of the middle block
    resnets: int = 2  # of a level on the way down; one more on the way up

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From a config of diffusers. Raises ValueError for what it does not describe."""
        channels = config["block_out_channels"]
        kinds = config["down_block_types"]
        layers = config.get("transformer_layers_per_block", 1)
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        layers, heads = (
            [value] * len(channels) if isinstance(value, int) else value
            for value in (layers, heads)
        )
        if not len(channels) == len(kinds) == len(layers) == len(heads):
            raise ValueError("a config whose lists differ in length")
        # A block without attention ignores the number of its layers; the middle block does not.
        own = [n if "CrossAttn" in kind else 0 for n, kind in zip(layers, kinds, strict=True)]
        found = tuple(zip(channels, own, heads, strict=True))
        return cls(found, layers[-1], config.get("layers_per_block", 2))


SDXL = Network(((320, 0, 5), (640, 2, 10), (1280, 10, 20)), 10)


@dataclass(frozen=True, slots=True)
class Gemm:
    """[m, k] times [k, n]; 1x1 convolutions too."""

    m: int
    n: int
    k: int

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k

    @property
    def numbers(self) -> int:
        """Read and written at least: both factors, the bias, the product."""
        return self.m * self.k + self.n * self.k + self.n + self.m * self.n


@dataclass(frozen=True, slots=True)
class Conv:
    """A 3x3 convolution over NHWC; height and width are those of its output.

    An `enlarged` one moves over a picture of half that size, each pixel repeated twice each way.
    """

    images: int
    height: int
    width: int
    channels: int
    filters: int
    stride: int = 1
    enlarged: bool = False

    @property
    def flop(self) -> int:
        return 2 * self.images * self.height * self.width * 9 * self.channels * self.filters

    @property
    def numbers(self) -> int:
        """Read and written at least: the picture, the filters, their biases, the result."""
        pixels = self.images * self.height * self.width
        weights = (9 * self.channels + 1) * self.filters
        read = pixels * self.stride**2 // (4 if self.enlarged else 1)
        return read * self.channels + pixels * self.filters + weights


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

    @property
    def numbers(self) -> int:
        """Read and written at least: queries, keys, values, the result."""
        return 2 * self.images * self.heads * self.width * (self.queries + self.keys)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Over the columns of each row."""

    rows: int
    columns: int

    @property
    def flop(self) -> int:
        """Not counted: bytes are what it takes."""
        return 0

    @property
    def numbers(self) -> int:
        """Read once, written once."""
        return 2 * self.rows * self.columns


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

    @property
    def numbers(self) -> int:
        """Read twice, once for the statistics; written once."""
        return 3 * self.images * self.pixels * self.channels


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

    def conv(self, channels: int, filters: int, stride: int = 1, *, enlarged: bool = False) -> None:
        self.height //= stride
        self.width //= stride
        place = (self.images, self.height, self.width)
        self.found[Conv(*place, channels, filters, stride, enlarged)] += 1

    def upsample(self, channels: int) -> None:
        self.height *= 2
        self.width *= 2
        self.conv(channels, channels, enlarged=True)

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

    def transformer(self, channels: int, layers: int, heads: int) -> None:
        """Query, key and value of self attention in one product; cross attention's are cached."""
        if not layers:
            return
        place, width = (self.images, heads, self.pixels), channels // heads
        self.norm(channels, False)
        self.gemm(channels, channels, 2)
        self.found[LayerNorm(self.images * self.pixels, channels)] += 3 * layers
        self.gemm(3 * channels, channels, layers)
        self.found[Attention(*place, self.pixels, width)] += layers
        self.found[Attention(*place, CONTEXT, width)] += layers
        self.gemm(channels, channels, 3 * layers)
        self.gemm(8 * channels, channels, layers)
        self.gemm(channels, 4 * channels, layers)


def step(width: int, height: int, rows: int = 2, network: Network = SDXL) -> Shapes:
    """One evaluation of the UNet for a picture of that size; `rows` is 2 with guidance.

    Left out is what does not change between steps: keys and values of the prompt, and the
    projections of the timestep.
    """
    walk = _Walk(rows, height // 8, width // 8)
    levels = network.levels
    channels = levels[0][0]
    walk.conv(4, channels)
    skips = [channels]
    for level, (filters, layers, heads) in enumerate(levels):
        for _ in range(network.resnets):
            walk.resnet(channels, filters)
            walk.transformer(filters, layers, heads)
            channels = filters
            skips.append(channels)
        if level + 1 < len(levels):
            walk.conv(channels, channels, 2)
            skips.append(channels)
    walk.resnet(channels, channels)
    walk.transformer(channels, network.middle, levels[-1][2])
    walk.resnet(channels, channels)
    for level, (filters, layers, heads) in reversed(list(enumerate(levels))):
        for _ in range(network.resnets + 1):
            walk.resnet(channels + skips.pop(), filters)
            walk.transformer(filters, layers, heads)
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


def nbytes(shapes: Shapes, size: int) -> int:
    """Bytes that all of them read and write at least, at `size` bytes a number."""
    return size * sum(shape.numbers * count for shape, count in shapes.items())


def of_kind(shapes: Shapes, kind: type[S]) -> Iterable[tuple[S, int]]:
    """Those of one kind with their counts, the most work first."""
    found = [(shape, count) for shape, count in shapes.items() if isinstance(shape, kind)]
    return sorted(found, key=lambda item: -item[0].flop * item[1])

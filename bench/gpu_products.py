"""Products, convolutions and attention as cases: every way of ours to run one shape of SDXL.

The reference takes seconds for a whole result of this size, so rows of it are held against float64:
of a product and of attention from the first to the last, of a convolution the edges and the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from diffusion_rt.bench import gpu_shapes
from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_case import Built
from diffusion_rt.bench.gpu_rows import excess
from diffusion_rt.kernels import attention, attention_tactics, conv, conv_sm90, gemm, gemm_sm90
from diffusion_rt.kernels.driver import Launch, Limits
from diffusion_rt.kernels.epilogue import Activation, Epilogue
from diffusion_rt.kernels.tactic import Encode, Operands

DTYPE: Final = "float16"
ROWS = 48  # of a result that are checked
CHANNELS = 8  # of which every width is a multiple: a latent and a picture are padded


@dataclass(frozen=True, slots=True)
class Geglu:
    """The product [m, k] times [n, k]ᵀ of a feed forward, whose n columns become n / 2."""

    m: int
    n: int
    k: int

    @property
    def flop(self) -> int:
        """The gate's own operations are not counted."""
        return 2 * self.m * self.n * self.k

    @property
    def numbers(self) -> int:
        """Read and written at least."""
        return self.m * self.k + self.n * self.k + self.n + self.m * self.n // 2


Enqueue = Callable[[], None]
Prepare = Callable[[Bench, tuple[Array, ...], int], Enqueue]  # inputs, and where the result goes
Shape = gpu_shapes.Gemm | Geglu | gpu_shapes.Conv | gpu_shapes.Attention


@dataclass(frozen=True, slots=True)
class Checked:
    """Random inputs, and what some rows of the result are."""

    inputs: tuple[Array, ...]
    shape: tuple[int, ...]  # of the result
    rows: Callable[[Array], Array]  # those of a result that are checked
    truth: Array  # float64
    plain: Array  # by plain code in float16


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run one shape; a `Case`."""

    shape: Shape
    tactic: str
    variant: str
    prepare: Prepare
    cold: bool = True

    @property
    def name(self) -> str:
        return type(self.shape).__name__.lower()

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    @property
    def setting(self) -> dict[str, str | int | float]:
        sizes = {name: int(getattr(self.shape, name)) for name in type(self.shape).__slots__}
        return {**sizes, "tactic": self.tactic}

    @property
    def nbytes(self) -> int:
        return 2 * self.shape.numbers

    @property
    def flop(self) -> int:
        """Those that are done: of nine taps over an enlarged picture four."""
        enlarged = isinstance(self.shape, gpu_shapes.Conv) and self.shape.enlarged
        return self.shape.flop * 4 // 9 if enlarged else self.shape.flop

    def build(self, bench: Bench, seed: int) -> Built:
        """On inputs that are the same for every seed: at another address they are as cold."""
        made = checked(self.shape)
        out = bench.poisoned(2 * int(np.prod(made.shape)))
        enqueue = self.prepare(bench, made.inputs, out.address)

        def check(found: dict[str, Array]) -> float:
            result = found["output"]
            if not np.isfinite(result).all():
                return float("inf")
            return excess(made.rows(result), made.plain, made.truth)

        return Built(enqueue=enqueue, outputs={"output": (out, made.shape, DTYPE)}, check=check)


def ways(shape: Shape, limits: Limits) -> list[Way]:
    """Every way to run a shape on a chip, the likely fastest first."""
    if isinstance(shape, gpu_shapes.Gemm | Geglu):
        gated = isinstance(shape, Geglu)
        product = gemm.Product(
            dtype=DTYPE,
            rows=shape.m,
            columns=shape.n,
            depth=shape.k,
            epilogue=Epilogue(bias=True, activation="geglu" if gated else "none"),
        )
        found: tuple[Any, ...] = (
            *gemm_sm90.tactics(product, limits),
            *gemm.tactics(product, limits),
        )
        return [Way(shape, way.name, way.variant, _operands(way)) for way in found]
    if isinstance(shape, gpu_shapes.Conv):
        convolution = _convolution(shape)
        found = (
            *conv_sm90.tactics(convolution, limits),
            *conv.tactics(convolution, limits),
        )
        return [Way(shape, way.name, way.variant, _operands(way)) for way in found]
    one = _attention(shape)
    return [
        Way(shape, way.variant.name, way.variant.name, _attended(one, way))
        for way in attention_tactics.tactics(one, limits)
    ]


def _operands(way: Any) -> Prepare:
    """For a tactic of a product or a convolution, of which source, weight and bias are given."""

    def prepare(bench: Bench, inputs: tuple[Array, ...], output: int) -> Enqueue:
        source, weight, bias = (bench.put(values).address for values in inputs)
        partial = bench.poisoned(way.partial_bytes).address if way.partial_bytes else 0
        arrived = bench.put(np.zeros(way.counters, np.uint32)).address if way.counters else 0
        operands = Operands(
            first=source,
            weight=weight,
            bias=bias,
            output=output,
            partial=partial,
            arrived=arrived,
        )
        arguments = way.arguments(operands, _encode(bench))
        return _enqueue(bench, way.variant, way.launch, arguments)

    return prepare


def _attended(one: attention.Attention, way: Any) -> Prepare:
    def prepare(bench: Bench, inputs: tuple[Array, ...], output: int) -> Enqueue:
        q, k, v = (bench.put(values).address for values in inputs)
        arguments = way.arguments(one, q, k, v, output, _encode(bench))
        return _enqueue(bench, way.variant.name, way.launch(one), arguments)

    return prepare


def _encode(bench: Bench) -> Encode | None:
    return bench.device.tensor_map if bench.device.arch >= 90 else None


def _enqueue(bench: Bench, variant: str, launch: Launch, arguments: tuple[Any, ...]) -> Enqueue:
    bench.kernel(variant)  # Nothing may load inside a capture.
    return lambda: bench.launch(variant, launch, *arguments)


def _convolution(shape: gpu_shapes.Conv) -> conv.Convolution:
    height, width = _source(shape)
    return conv.Convolution(
        dtype=DTYPE,
        images=shape.images,
        height=height,
        width=width,
        channels=_padded(shape.channels),
        filters=_padded(shape.filters),
        kernel=(3, 3),
        stride=shape.stride,
        padding=(1, 1, 1, 1),
        enlarged=(shape.height, shape.width) if shape.enlarged else None,
        epilogue=Epilogue(bias=True),
    )


def _source(shape: gpu_shapes.Conv) -> tuple[int, int]:
    """Height and width of what a convolution reads, as it lies."""
    if shape.enlarged:
        return shape.height // 2, shape.width // 2
    return shape.height * shape.stride, shape.width * shape.stride


def _attention(shape: gpu_shapes.Attention) -> attention.Attention:
    queries, keys = (
        attention.sequence_major(tokens, shape.heads, shape.width)
        for tokens in (shape.queries, shape.keys)
    )
    return attention.Attention(
        batch=shape.images,
        heads=shape.heads,
        queries=shape.queries,
        keys=shape.keys,
        head_size=shape.width,
        q=queries,
        k=keys,
        v=keys,
        out=queries,
        dtype=DTYPE,
    )


def _padded(channels: int) -> int:
    return -(-channels // CHANNELS) * CHANNELS


@lru_cache(maxsize=2)
def checked(shape: Shape) -> Checked:
    """Inputs for a shape, and rows of what is right; kept while one shape is tried."""
    rng = np.random.default_rng(0)

    def random(*sizes: int, scale: float = 1.0) -> Array:
        values: Array = rng.standard_normal(sizes, np.float32)
        return (values * np.float32(scale)).astype(DTYPE)

    if isinstance(shape, gpu_shapes.Gemm | Geglu):
        return _checked_product(shape, random)
    if isinstance(shape, gpu_shapes.Conv):
        return _checked_convolution(shape, random)
    return _checked_attention(shape, random)


def _spread(count: int) -> Array:
    """Some places from the first to the last of `count`."""
    places: Array = np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(int))
    return places


def _checked_product(shape: gpu_shapes.Gemm | Geglu, random: Callable[..., Array]) -> Checked:
    a, weight = random(shape.m, shape.k), random(shape.n, shape.k, scale=shape.k**-0.5)
    bias, rows = random(shape.n), _spread(shape.m)
    gated = isinstance(shape, Geglu)
    # Rows of the weight are taken as they lie: for a gate, values and gates are interleaved.
    activation: Activation = "geglu" if gated else "none"
    truth = gemm.reference(a[rows], weight, bias=bias, activation=activation)
    return Checked(
        (a, weight, bias),
        (shape.m, shape.n // 2 if gated else shape.n),
        lambda found: found[rows],
        truth,
        truth.astype(DTYPE),  # sums in float32 lose far less than one rounding to float16
    )


def _checked_convolution(shape: gpu_shapes.Conv, random: Callable[..., Array]) -> Checked:
    stride, channels, filters = shape.stride, _padded(shape.channels), _padded(shape.filters)
    height, width = _source(shape)
    x = random(shape.images, height, width, channels)
    weight = random(filters, 3, 3, channels, scale=(9 * channels) ** -0.5)
    if shape.enlarged:
        weight = conv.doubled_filters(weight).astype(DTYPE)
    bias = random(filters)
    # Whole lines of the result: both edges, and one within.
    lines = sorted({0, shape.height // 2, shape.height - 1})
    parts = []
    for line in lines:
        if shape.enlarged:
            first = max(line // 2 - 1, 0)
            made = conv.reference(x[:, first : line // 2 + 2], weight, bias=bias)
            parts.append(made[:, line - 2 * first, None])
            continue
        first, last = line * stride - 1, line * stride + 1  # of the source, both included
        seen = x[:, max(first, 0) : last + 1]
        padding = (max(-first, 0), 1, max(last - height + 1, 0), 1)
        parts.append(conv.reference(seen, weight, stride=stride, padding=padding, bias=bias))
    truth = np.concatenate(parts, 1)
    return Checked(
        (x, weight, bias),
        (shape.images, shape.height, shape.width, filters),
        lambda found: found[:, lines],
        truth,
        truth.astype(DTYPE),
    )


def _checked_attention(shape: gpu_shapes.Attention, random: Callable[..., Array]) -> Checked:
    q = random(shape.images, shape.queries, shape.heads, shape.width)
    k, v = (random(shape.images, shape.keys, shape.heads, shape.width) for _ in range(2))
    rows, scale = _spread(shape.queries), shape.width**-0.5
    truth = attention.reference(q[:, rows], k, v, scale)
    return Checked(
        (q, k, v), q.shape, lambda found: found[:, rows], truth, _plain(q[:, rows], k, v, scale)
    )


def _plain(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Attention in float32 with weights rounded to float16, as a product in half wants them."""
    one = np.float32
    queries, keys, values = (x.astype(one).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = queries @ keys.swapaxes(-1, -2) * one(scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    mean = weights.astype(DTYPE).astype(one) @ values / total
    result: Array = mean.transpose(0, 2, 1, 3).astype(DTYPE)
    return result

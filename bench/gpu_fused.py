"""A part of the GPU run: products and convolutions with all that a model fuses into them.

Two sources side by side, a source enlarged while it is read, a vector for each image, a residual
that lies where the output does, gates, splits of the depth; in float16, and in bfloat16 as the VAE
has it. Every likely way is held against float64; none is timed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_case import Built, run
from diffusion_rt.bench.gpu_kernels import guarded
from diffusion_rt.bench.gpu_rows import Sink, excess
from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.kernels import conv, conv_sm90, gemm, gemm_sm90
from diffusion_rt.kernels.conv import Convolution
from diffusion_rt.kernels.driver import Limits
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.gemm import Product
from diffusion_rt.kernels.tactic import Operands, Tactic

MOST_WAYS = 4  # of one family and one operation, the likely fastest

ALL = Epilogue(bias=True, vector=True, residual=True)
ADDED = Epilogue(bias=True, residual=True)
GATED = Epilogue(bias=True, activation="geglu")


def operations(*, tiny: bool) -> Iterator[tuple[str, Product | Convolution]]:
    """What is checked, by names; `tiny` is what a simulator can do in no time."""
    if tiny:
        yield "product", _product(rows=33, columns=40, depth=72)
        return
    yield "residual", _product()
    yield "few rows", _product(rows=154, depth=2048, epilogue=Epilogue())
    yield "deep", _product(rows=300, columns=640, depth=5120)
    yield "two sources", _product(rows=1000, depth=1920, first_depth=1280)
    yield "vector", _product(rows=2 * 500, columns=328, image_rows=500, epilogue=ALL)
    yield "gates", _product(rows=1030, columns=5120, depth=640, epilogue=GATED)
    yield "product, bfloat16", _product(dtype="bfloat16", rows=1024, columns=512)
    yield "convolution", _convolution()
    yield "convolution, deep", _convolution(height=8, width=8, channels=640)
    yield "convolution, two sources", _convolution(channels=384, first_channels=256)
    yield "convolution, halved", _convolution(stride=2)
    yield "convolution, enlarged", _convolution(enlarged=(34, 48))
    yield "convolution, enlarged, odd", _convolution(enlarged=(33, 47))
    of_vae: dict[str, Any] = {"dtype": "bfloat16", "images": 1, "channels": 128, "filters": 128}
    yield "convolution, bfloat16", _convolution(**of_vae)
    yield "convolution, bfloat16, enlarged", _convolution(**of_vae, enlarged=(34, 48))


def _product(**changes: Any) -> Product:
    sizes: dict[str, Any] = {"rows": 2048, "columns": 1280, "depth": 1280, "epilogue": ADDED}
    return Product(**{"dtype": "float16", **sizes, **changes})


def _convolution(**changes: Any) -> Convolution:
    """A 3x3 convolution of two images that nothing divides."""
    sizes: dict[str, Any] = {"images": 2, "height": 17, "width": 24, "channels": 192}
    filters: dict[str, Any] = {"filters": 328, "kernel": (3, 3), "padding": (1, 1, 1, 1)}
    return Convolution(**{"dtype": "float16", "epilogue": ALL, **sizes, **filters, **changes})


def check(sink: Sink) -> None:
    """Every likely way of every operation, twice: the second time to the same bits."""
    bench = Bench(simulated=sink.chip.simulated)
    for name, operation in operations(tiny=bench.simulated):
        made = Made.of(operation)
        for tactic in _tried(operation, bench.device.limits, tiny=bench.simulated):
            if sink.late:
                sink.not_run(name, "out of time from here on")
                return
            case = Fused(name, tactic, made)
            guarded(sink, bench, case, partial(_check, sink, bench, case))
    bench.close()


def _check(sink: Sink, bench: Bench, case: "Fused") -> None:
    built = case.build(bench, 0)
    first, second = (run(bench, built)["output"] for _ in range(2))
    error = built.check({"output": first})
    if error <= 1 and first.tobytes() != second.tobytes():
        sink.failed(case.name, "differs between two runs: a race", case.setting)
    else:
        sink.checked(case.name, error, case.setting)


def _tried(operation: Product | Convolution, limits: Limits, *, tiny: bool) -> list[Tactic]:
    found: tuple[Any, ...]
    if isinstance(operation, Product):
        found = (*gemm_sm90.tactics(operation, limits), *gemm.tactics(operation, limits))
    else:
        found = (*conv_sm90.tactics(operation, limits), *conv.tactics(operation, limits))
    families: dict[bool, list[Tactic]] = {}
    for tactic in found:
        families.setdefault("sm90" in tactic.variant, []).append(tactic)
    most = 1 if tiny else MOST_WAYS
    return [tactic for family in families.values() for tactic in family[:most]]


@dataclass(frozen=True, slots=True)
class Made:
    """Random operands of an operation, and what is right."""

    dtype: str
    arrays: dict[str, Array]  # by the fields of Operands, each as the device stores it
    truth: Array  # float64, [rows, columns]
    shape: tuple[int, int]

    @classmethod
    def of(cls, operation: Product | Convolution) -> "Made":
        """The same for the same operation."""
        draw = np.random.default_rng(0)
        product = operation if isinstance(operation, Product) else operation.product
        has, dtype = operation.epilogue, operation.dtype

        def random(*shape: int, scale: float = 1.0) -> Array:
            return _rounded(draw.standard_normal(shape, np.float32) * np.float32(scale), dtype)

        rows, columns = product.rows, product.output_columns
        images = -(-rows // product.image_rows)
        scale = product.depth**-0.5
        epilogue: dict[str, Any] = {
            "bias": random(product.columns) if has.bias else None,
            "vector": random(images, product.columns) if has.vector else None,
            "residual": random(rows, columns) if has.residual else None,
        }
        sources: Array
        if isinstance(operation, Product):
            sources = random(rows, product.depth)
            weight = random(product.columns, product.depth, scale=scale)
            truth = gemm.reference(sources, weight, activation=has.activation, **epilogue)
            first = operation.first_depth
        else:
            of = operation
            sources = random(of.images, of.height, of.width, of.channels)
            weight = random(of.filters, *of.kernel, of.channels, scale=scale)
            if of.doubled:
                weight = _rounded(conv.doubled_filters(weight), dtype)
            residual = epilogue["residual"]
            shaped = (of.images, *of.output_size, columns)
            truth = conv.reference(
                sources,
                weight,
                stride=of.stride,
                padding=of.padding,
                enlarged=of.enlarged,
                activation=has.activation,
                bias=epilogue["bias"],
                vector=epilogue["vector"],
                residual=None if residual is None else residual.reshape(shaped),
            ).reshape(rows, columns)
            first = of.first_channels
        arrays = {"first": sources[..., :first], "second": sources[..., first:], "weight": weight}
        arrays |= {name: values for name, values in epilogue.items() if values is not None}
        kept = {name: _stored(values, dtype) for name, values in arrays.items() if values.size}
        return cls(dtype, kept, truth, (rows, columns))


@dataclass(frozen=True, slots=True)
class Fused:
    """One way to run an operation; a `Case`. A residual lies where the output does."""

    name: str
    tactic: Tactic
    made: Made
    nbytes: int = 0
    flop: int = 0
    cold: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.tactic.variant,)

    @property
    def setting(self) -> dict[str, str | int | float]:
        return {"tactic": self.tactic.name, "dtype": self.made.dtype}

    def build(self, bench: Bench, seed: int) -> Built:
        made, tactic = self.made, self.tactic
        kind = np.dtype("f2" if made.dtype == "float16" else "u2")
        placed = {name: bench.put(values) for name, values in made.arrays.items()}
        out = placed.get("residual") or bench.poisoned(kind.itemsize * int(np.prod(made.shape)))
        partial_sums = bench.poisoned(tactic.partial_bytes) if tactic.partial_bytes else None
        arrived = bench.put(np.zeros(tactic.counters, np.uint32)) if tactic.counters else None
        operands = Operands(
            **{name: buffer.address for name, buffer in placed.items()},
            output=out.address,
            partial=partial_sums.address if partial_sums else 0,
            arrived=arrived.address if arrived else 0,
        )
        encode = bench.device.tensor_map if bench.device.arch >= 90 else None
        arguments = tactic.arguments(operands, encode)
        bench.kernel(tactic.variant)  # Nothing may load inside a capture.

        def check(found: dict[str, Array]) -> float:
            got = _values(found["output"], made.dtype)
            return excess(got, _rounded(made.truth.astype(np.float32), made.dtype), made.truth)

        residual = made.arrays.get("residual")
        return Built(
            enqueue=lambda: bench.launch(tactic.variant, tactic.launch, *arguments),
            outputs={"output": (out, made.shape, kind)},
            check=check,
            restore={} if residual is None else {"output": (out, residual)},
        )


def _rounded(values: Array, dtype: str) -> Array:
    """The nearest numbers of a type, as float32."""
    return _values(_stored(values, dtype), dtype)


def _stored(values: Array, dtype: str) -> Array:
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def _values(stored: Array, dtype: str) -> Array:
    return widened(stored, dtype).astype(np.float32)

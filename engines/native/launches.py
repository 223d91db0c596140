"""What an operation of a plan launches: kernels, grids and arguments.

`ways` says from an operation's sizes how it can be run on a chip, and what scratch memory each way
wants; `Way.calls` puts in the addresses, again whenever memory has moved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from math import prod
from typing import Protocol

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import plan as p
from diffusion_rt.kernels import (
    attention,
    attention_tactics,
    conv,
    gemm,
    gemm_sm90,
    group_norm,
    layer_norm,
)
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import Launch, Limits, Misuse
from diffusion_rt.kernels.driver.arguments import Value
from diffusion_rt.kernels.driver.interface import ALIGNMENT
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.tactic import Encode, Operands, Tactic


@dataclass(frozen=True, slots=True)
class Call:
    """One launch of one kernel."""

    variant: Variant
    launch: Launch
    arguments: tuple[Value, ...]


class Places(Protocol):
    """Where everything lies right now."""

    @property
    def scratch(self) -> int:
        """Memory that an operation writes and reads itself; the next one writes over it."""
        ...

    @property
    def counters(self) -> int:
        """uint32 numbers that are zero before and after every operation."""
        ...

    def view(self, view: p.View) -> int:
        """The address of a view's first element."""
        ...

    def weight(self, name: str) -> int:
        """The address of a weight."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run an operation of given sizes."""

    name: str  # of the tactic, the same on every chip
    variants: tuple[Variant, ...]  # the kernels
    scratch_bytes: int = 0
    counters: int = 0
    calls: Callable[[Places], tuple[Call, ...]]


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to run an operation on a chip, the likely fastest first."""

    sizes: str  # equal for operations that run equally fast
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Chip:
    """What the choice of a way depends on."""

    limits: Limits
    encode: Encode | None = None  # makes tensor maps, on chips that have them


def ways(operation: p.Operation, plan: p.Plan, chip: Chip) -> Ways:
    """How an operation of the plan can be run; BadInput names it where no kernel takes it."""
    try:
        found = _ways(operation, plan, chip)
    except Misuse as error:
        raise BadInput(
            f"{plan.graph}: {operation.name}: no kernel runs this on sm_{chip.limits.arch} "
            f"({error}); run with --engine ort"
        ) from None
    return found


@singledispatch
def _ways(operation: p.Operation, plan: p.Plan, chip: Chip) -> Ways:
    raise Misuse(f"{type(operation).__name__} is no known operation")


@_ways.register
def _product(operation: p.Product, plan: p.Plan, chip: Chip) -> Ways:
    first, *rest = operation.sources
    second = rest[0] if rest else None
    for view in (*operation.sources, operation.output):
        _want(len(view.shape) == 2, view)
    epilogue = operation.epilogue
    depth = sum(source.shape[1] for source in operation.sources)
    product = gemm.Product(
        dtype=_dtype(plan, *operation.reads, operation.output),
        rows=first.shape[0],
        columns=operation.columns,
        depth=depth,
        first_depth=0 if second is None else first.shape[1],
        image_rows=operation.image_rows,
        first_stride=_row_stride(first),
        second_stride=0 if second is None else _row_stride(second),
        vector_stride=0 if epilogue.vector is None else _row_stride(epilogue.vector),
        residual_stride=0 if epilogue.residual is None else _row_stride(epilogue.residual),
        output_stride=_row_stride(operation.output),
        epilogue=_flags(epilogue),
    )
    hopper = gemm_sm90.tactics(product, chip.limits)
    tactics: tuple[Tactic, ...] = (*hopper, *gemm.tactics(product, chip.limits))
    return _of_tactics(product, tactics, operation, chip)


@_ways.register
def _convolution(operation: p.Convolution, plan: p.Plan, chip: Chip) -> Ways:
    first, *rest = operation.sources
    second = rest[0] if rest else None
    epilogue = operation.epilogue
    images, height, width, _ = first.shape
    filters, kernel_height, kernel_width, channels = plan.weights[operation.weight].shape
    residual, vector = epilogue.residual, epilogue.vector
    convolution = conv.Convolution(
        dtype=_dtype(plan, *operation.reads, operation.output),
        images=images,
        height=height,
        width=width,
        channels=channels,
        filters=filters,
        kernel=(kernel_height, kernel_width),
        stride=operation.stride,
        padding=operation.padding,
        enlarged=operation.upsampled,
        first_channels=0 if second is None else first.shape[-1],
        first_stride=_row_stride(first),
        second_stride=0 if second is None else _row_stride(second),
        vector_stride=0 if vector is None else _row_stride(vector),
        residual_stride=0 if residual is None else _row_stride(residual),
        output_stride=_row_stride(operation.output),
        epilogue=_flags(epilogue),
    )
    if operation.output.shape[1:3] != convolution.output_size:
        raise Misuse(f"{convolution.output_size} pixels for {operation.output.shape}")
    tactics = conv.tactics(convolution, chip.limits)
    return _of_tactics(convolution, tactics, operation, chip)


def _of_tactics(
    sizes: gemm.Product | conv.Convolution,
    tactics: Sequence[Tactic],
    operation: p.Product | p.Convolution,
    chip: Chip,
) -> Ways:
    """One way for each tactic: partial sums first in the scratch memory."""
    first, *rest = operation.sources
    epilogue = operation.epilogue

    def way(tactic: Tactic) -> Way:
        variant = CATALOGUE[tactic.variant]

        def calls(places: Places) -> tuple[Call, ...]:
            operands = Operands(
                first=places.view(first),
                second=places.view(rest[0]) if rest else 0,
                weight=places.weight(operation.weight),
                bias=0 if epilogue.bias is None else places.weight(epilogue.bias),
                vector=0 if epilogue.vector is None else places.view(epilogue.vector),
                residual=0 if epilogue.residual is None else places.view(epilogue.residual),
                output=places.view(operation.output),
                partial=places.scratch if tactic.partial_bytes else 0,
                arrived=places.counters if tactic.counters else 0,
            )
            arguments = tactic.arguments(operands, chip.encode)
            return (Call(variant, tactic.launch, arguments),)

        return Way(
            name=tactic.name,
            variants=(variant,),
            scratch_bytes=tactic.partial_bytes,
            counters=tactic.counters,
            calls=calls,
        )

    if not tactics:
        raise Misuse(f"no tactic for {sizes}")
    return Ways(repr(sizes), tuple(way(tactic) for tactic in tactics))


@_ways.register
def _attention(operation: p.Attention, plan: p.Plan, chip: Chip) -> Ways:
    views = (operation.query, operation.key, operation.value, operation.output)
    images, queries, heads, head_size = operation.query.shape
    for view in views:
        if len(view.shape) != 4 or view.strides[-1] != 1:
            raise Misuse(f"attention over {view.shape} with strides {view.strides}")
    q, k, v, out = (attention.Strides(*view.strides[:3]) for view in views)
    sizes = attention.Attention(
        batch=images,
        heads=heads,
        queries=queries,
        keys=operation.key.shape[1],
        head_size=head_size,
        q=q,
        k=k,
        v=v,
        out=out,
        dtype=_dtype(plan, *views),
        scale=operation.scale,
        causal=operation.causal,
    )

    def way(tactic: attention_tactics.Tactic) -> Way:
        def calls(places: Places) -> tuple[Call, ...]:
            addresses = [places.view(view) for view in views]
            arguments = tactic.arguments(sizes, *addresses)
            return (Call(tactic.variant, tactic.launch(sizes), arguments),)

        return Way(name=tactic.variant.name, variants=(tactic.variant,), calls=calls)

    tactics = attention_tactics.tactics(sizes, chip.limits)
    return Ways(repr(sizes), tuple(way(tactic) for tactic in tactics))


@_ways.register
def _group_norm(operation: p.GroupNorm, plan: p.Plan, chip: Chip) -> Ways:
    first, *rest = operation.sources
    output = operation.output
    images, pixels, channels = output.shape
    norm = group_norm.GroupNorm(
        dtype=_dtype(plan, *operation.sources, output),
        images=images,
        pixels=pixels,
        channels=channels,
        groups=operation.groups,
        epsilon=operation.epsilon,
        silu=operation.silu,
        first_channels=first.shape[-1] if rest else 0,
        first_stride=_row_stride(first),
        second_stride=_row_stride(rest[0]) if rest else 0,
        output_stride=_row_stride(output),
        multiprocessors=chip.limits.multiprocessors,
    )
    variants = tuple(CATALOGUE[name] for name in norm.variants)
    partial = _rounded(norm.partial_bytes)

    def calls(places: Places) -> tuple[Call, ...]:
        sources = {
            "first": places.view(first),
            "second": places.view(rest[0]) if rest else 0,
            "moments": places.scratch + partial,
        }
        arguments = (
            norm.statistics_arguments(partial=places.scratch, arrived=places.counters, **sources),
            norm.arguments(
                weight=places.weight(operation.weight),
                bias=places.weight(operation.bias),
                output=places.view(output),
                **sources,
            ),
        )
        return tuple(map(Call, variants, norm.launches, arguments))

    way = Way(
        name="two passes",
        variants=variants,
        scratch_bytes=partial + norm.moments_bytes,
        counters=norm.counters,
        calls=calls,
    )
    return Ways("", (way,))


@_ways.register
def _layer_norm(operation: p.LayerNorm, plan: p.Plan, chip: Chip) -> Ways:
    source, output = operation.source, operation.output
    _want_contiguous(source, output)
    rows, columns = output.shape
    variant = CATALOGUE[f"layer_norm.{_dtype(plan, source, output)}"]
    launch = layer_norm.launch(rows, columns)

    def calls(places: Places) -> tuple[Call, ...]:
        weights = places.weight(operation.weight), places.weight(operation.bias)
        values = (places.view(source), *weights, places.view(output), columns, operation.epsilon)
        return (Call(variant, launch, values),)

    return Ways("", (Way(name="one block a row", variants=(variant,), calls=calls),))


def _flags(epilogue: p.Epilogue) -> Epilogue:
    return Epilogue(
        bias=epilogue.bias is not None,
        vector=epilogue.vector is not None,
        activation=epilogue.activation,
        residual=epilogue.residual is not None,
    )


def _dtype(plan: p.Plan, *views: p.View) -> p.Arithmetic:
    """The arithmetic of a plan, which is the type of all these views."""
    for view in views:
        if view.dtype != plan.dtype:
            raise Misuse(f"{view.buffer} is {view.dtype} in a plan of {plan.dtype}")
    return plan.dtype


def _row_stride(view: p.View) -> int:
    """Elements from one row (the last dimension) to the next; rows are evenly apart."""
    *sizes, columns = view.shape
    *strides, step = view.strides
    evenly = step == 1 or columns == 1
    stride = next((s for n, s in zip(sizes[::-1], strides[::-1], strict=True) if n > 1), columns)
    for place in range(len(sizes)):
        wanted = stride * prod(sizes[place + 1 :])
        evenly = evenly and (sizes[place] == 1 or strides[place] == wanted)
    if not evenly:
        raise Misuse(f"rows of {view.shape} with strides {view.strides}")
    return stride


def _want(condition: bool, view: p.View) -> None:
    if not condition:
        raise Misuse(f"{view.shape} with strides {view.strides}")


def _want_contiguous(*views: p.View) -> None:
    for view in views:
        _want(_row_stride(view) == view.shape[-1], view)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

"""Operations that are run in one way: norms, copies, functions of elements, rows of tables."""

from collections.abc import Callable
from math import prod

from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.ways import (
    Call,
    Chip,
    Places,
    Way,
    Ways,
    dtype_of,
    rounded,
    row_stride,
    want,
    want_contiguous,
)
from diffusion_rt.kernels import (
    elementwise,
    embedding,
    group_norm,
    layer_norm,
    select_row,
    timestep_embedding,
)
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Launch
from diffusion_rt.kernels.driver.arguments import Value


def group_norms(operation: p.GroupNorm, plan: p.Plan, chip: Chip) -> Ways:
    """Statistics, then the normalisation."""
    first, *rest = operation.sources
    output = operation.output
    images, pixels, channels = output.shape
    norm = group_norm.GroupNorm(
        dtype=dtype_of(plan, *operation.sources, output),
        images=images,
        pixels=pixels,
        channels=channels,
        groups=operation.groups,
        epsilon=operation.epsilon,
        silu=operation.silu,
        first_channels=first.shape[-1] if rest else 0,
        first_stride=row_stride(first),
        second_stride=row_stride(rest[0]) if rest else 0,
        output_stride=row_stride(output),
        multiprocessors=chip.limits.multiprocessors,
    )
    variants = tuple(CATALOGUE[name] for name in norm.variants)
    partial = rounded(norm.partial_bytes)

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


def layer_norms(operation: p.LayerNorm, plan: p.Plan, chip: Chip) -> Ways:
    """A warp for each row."""
    source, output = operation.source, operation.output
    want_contiguous(source, output)
    rows, columns = output.shape
    variant = CATALOGUE[f"layer_norm.{dtype_of(plan, source, output)}"]
    launch = layer_norm.launch(rows, columns)

    def calls(places: Places) -> tuple[Call, ...]:
        weights = places.weight(operation.weight), places.weight(operation.bias)
        sizes = (rows, columns, operation.epsilon)
        values = (places.view(source), *weights, places.view(output), *sizes)
        return (Call(variant, launch, values),)

    return Ways("", (Way(name="a warp a row", variants=(variant,), calls=calls),))


def copies(operation: p.Copy, plan: p.Plan, chip: Chip) -> Ways:
    """A transpose, a cast, a wider last dimension, or all of them."""
    source, output = operation.source, operation.output
    valid = source.shape[-1] if source.shape[-1] < output.shape[-1] else 0
    return _by_element("copy", (source,), output, valid=valid)


def functions(operation: p.Elementwise, plan: p.Plan, chip: Chip) -> Ways:
    """A function of each element."""
    for source in operation.sources:
        want(source.shape == operation.output.shape, source)
    return _by_element(
        operation.function, operation.sources, operation.output, scalars=operation.scalars
    )


def _by_element(
    function: elementwise.Function,
    sources: tuple[p.View, ...],
    output: p.View,
    *,
    scalars: tuple[float, ...] = (),
    valid: int = 0,
) -> Ways:
    found = elementwise.Elementwise(
        function=function,
        shape=output.shape,
        sources=tuple(_strided(source) for source in sources),
        output=_strided(output),
        scalars=scalars,
        valid=valid,
    )
    variant = CATALOGUE[found.variant]

    def calls(places: Places) -> tuple[Call, ...]:
        first, *rest = (places.view(source) for source in sources)
        second = rest[0] if rest else 0
        arguments = found.arguments(first=first, second=second, output=places.view(output))
        return (Call(variant, found.launch, arguments),)

    return Ways("", (Way(name=found.variant, variants=(variant,), calls=calls),))


def embeddings(operation: p.Embedding, plan: p.Plan, chip: Chip) -> Ways:
    """Rows of a table, with those of the positions added."""
    ids, output = operation.ids, operation.output
    want_contiguous(output)
    want(ids.strides[-1] == 1, ids)
    images, tokens, columns = output.shape
    vocabulary = plan.weights[operation.table].shape[0]

    def values(places: Places) -> tuple[Value, ...]:
        tables = places.weight(operation.table), places.weight(operation.positions)
        sizes = columns, vocabulary, ids.strides[0]
        return (places.view(ids), *tables, places.view(output), *sizes)

    name = f"embedding.{dtype_of(plan, output)}"
    return _alone(name, embedding.launch(images, tokens, columns), values)


def timestep_embeddings(operation: p.TimestepEmbedding, plan: p.Plan, chip: Chip) -> Ways:
    """Sines and cosines of each value."""
    source, output = operation.source, operation.output
    want(source.dtype == "float32", source)
    want_contiguous(source)
    want(output.strides[-1] == 1, output)
    rows, half = prod(source.shape), output.shape[-1] // 2
    outer, inner, inner_stride = output.strides[0], 1, 0
    if len(output.shape) == 3:
        inner, inner_stride = output.shape[1], output.strides[1]

    def values(places: Places) -> tuple[Value, ...]:
        frequencies = places.weight(operation.frequencies)
        sizes = half, inner, outer, inner_stride, int(operation.cosine_first)
        return (places.view(source), frequencies, places.view(output), *sizes)

    name = f"timestep_embedding.{dtype_of(plan, output)}"
    return _alone(name, timestep_embedding.launch(rows, half), values)


def selected_rows(operation: p.SelectRow, plan: p.Plan, chip: Chip) -> Ways:
    """One row of each image."""
    ids, source, output = operation.ids, operation.source, operation.output
    for view in (ids, source, output):
        want(view.strides[-1] == 1, view)
    images, tokens, columns = source.shape
    token = select_row.LARGEST if operation.token is None else operation.token

    def values(places: Places) -> tuple[Value, ...]:
        sizes = tokens, columns, token, ids.strides[0]
        return (
            *(places.view(ids), places.view(source), places.view(output)),
            *sizes,
            *(*source.strides[:2], output.strides[0]),
        )

    name = f"select_row.{dtype_of(plan, source, output)}"
    return _alone(name, select_row.launch(images, columns), values)


def _alone(name: str, launch: Launch, values: Callable[[Places], tuple[Value, ...]]) -> Ways:
    """The only way, of one kernel."""
    variant = CATALOGUE[name]

    def calls(places: Places) -> tuple[Call, ...]:
        return (Call(variant, launch, values(places)),)

    return Ways("", (Way(name=name, variants=(variant,), calls=calls),))


def _strided(view: p.View) -> elementwise.Strided:
    return elementwise.Strided(view.dtype, view.strides, view.offset)

"""Operations that can be run in several ways: products, convolutions, attention."""

from collections.abc import Sequence
from functools import lru_cache

from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.size_names import size_name
from diffusion_rt.engines.native.ways import (
    Call,
    Chip,
    Places,
    Way,
    Ways,
    dtype_of,
    row_stride,
    want,
)
from diffusion_rt.kernels import attention, attention_tactics, conv, conv_sm90, gemm, gemm_sm90
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Limits, Misuse
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.tactic import Operands, Tactic


def product(operation: p.Product, plan: p.Plan, chip: Chip) -> Ways:
    """A product: by each tile, with its depth whole or in splits."""
    first, *rest = operation.sources
    second = rest[0] if rest else None
    for view in (*operation.sources, operation.output):
        want(len(view.shape) == 2, view)
    epilogue = operation.epilogue
    depth = sum(source.shape[1] for source in operation.sources)
    sizes = gemm.Product(
        dtype=dtype_of(plan, *operation.reads, operation.output),
        rows=first.shape[0],
        columns=operation.columns,
        depth=depth,
        first_depth=0 if second is None else first.shape[1],
        image_rows=operation.image_rows,
        first_stride=row_stride(first),
        second_stride=0 if second is None else row_stride(second),
        vector_stride=0 if epilogue.vector is None else row_stride(epilogue.vector),
        residual_stride=0 if epilogue.residual is None else row_stride(epilogue.residual),
        output_stride=row_stride(operation.output),
        epilogue=_flags(epilogue),
    )
    return _of_tactics(sizes, _of_product(sizes, chip.limits), operation, chip)


def convolution(operation: p.Convolution, plan: p.Plan, chip: Chip) -> Ways:
    """A convolution, likewise."""
    first, *rest = operation.sources
    second = rest[0] if rest else None
    epilogue = operation.epilogue
    images, height, width, _ = first.shape
    filters, *_, channels = plan.weights[operation.weight].shape
    residual, vector = epilogue.residual, epilogue.vector
    sizes = conv.Convolution(
        dtype=dtype_of(plan, *operation.reads, operation.output),
        images=images,
        height=height,
        width=width,
        channels=channels,
        filters=filters,
        kernel=operation.kernel,
        stride=operation.stride,
        padding=operation.padding,
        enlarged=operation.upsampled,
        first_channels=0 if second is None else first.shape[-1],
        first_stride=row_stride(first),
        second_stride=0 if second is None else row_stride(second),
        vector_stride=0 if vector is None else row_stride(vector),
        residual_stride=0 if residual is None else row_stride(residual),
        output_stride=row_stride(operation.output),
        epilogue=_flags(epilogue),
    )
    if operation.output.shape[1:3] != sizes.output_size:
        raise Misuse(f"{sizes.output_size} pixels for {operation.output.shape}")
    return _of_tactics(sizes, _of_convolution(sizes, chip.limits), operation, chip)


@lru_cache(1024)
def _of_product(sizes: gemm.Product, limits: Limits) -> tuple[Tactic, ...]:
    """The tactics of a product; a plan has some hundreds, but of few sizes."""
    return (*gemm_sm90.tactics(sizes, limits), *gemm.tactics(sizes, limits))


@lru_cache(1024)
def _of_convolution(sizes: conv.Convolution, limits: Limits) -> tuple[Tactic, ...]:
    return (*conv_sm90.tactics(sizes, limits), *conv.tactics(sizes, limits))


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
            tactic=tactic,
        )

    if not tactics:
        raise Misuse(f"no tactic for {sizes}")
    own = (way(tactic) for tactic in tactics)
    over = epilogue.residual is not None and epilogue.residual.buffer == operation.output.buffer
    # Not every library writes over what it reads: such an operation is measured by itself.
    name = f"{size_name(sizes)} over the residual" if over else size_name(sizes)
    return Ways(name, (*own, *_of_libraries(sizes, operation, chip)))


def _of_libraries(sizes: object, operation: p.Operation, chip: Chip) -> tuple[Way, ...]:
    return tuple(way for library in chip.libraries for way in library.ways(operation, sizes))


def attend(operation: p.Attention, plan: p.Plan, chip: Chip) -> Ways:
    """An attention: by each kernel that takes the head."""
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
        dtype=dtype_of(plan, *views),
        scale=operation.scale,
        causal=operation.causal,
    )

    def way(tactic: attention_tactics.Tactic) -> Way:
        def calls(places: Places) -> tuple[Call, ...]:
            query, key, value, output = (places.view(view) for view in views)
            arguments = tactic.arguments(sizes, query, key, value, output, chip.encode)
            return (Call(tactic.variant, tactic.launch(sizes), arguments),)

        return Way(name=tactic.variant.name, variants=(tactic.variant,), calls=calls)

    own = (way(tactic) for tactic in attention_tactics.tactics(sizes, chip.limits))
    return Ways(size_name(sizes), (*own, *_of_libraries(sizes, operation, chip)))


def _flags(epilogue: p.Epilogue) -> Epilogue:
    return Epilogue(
        bias=epilogue.bias is not None,
        vector=epilogue.vector is not None,
        activation=epilogue.activation,
        residual=epilogue.residual is not None,
    )

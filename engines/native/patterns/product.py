"""Matrices times parameters, with what follows; those of one input become one product."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from diffusion_rt.engines.native.builder import OUTPUT, Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.patterns.epilogue import Chain, epilogue, follow
from diffusion_rt.engines.native.plan import Epilogue, Layout, Product, View
from diffusion_rt.engines.native.values import Parameter, Tensor
from diffusion_rt.engines.native.views import contiguous, narrowed, reshaped, rows


@dataclass(frozen=True, slots=True)
class Linear:
    """x · weightᵀ + bias, and what follows it."""

    index: int
    node: Node
    weight: Parameter
    layout: Layout  # rows or transposed
    bias: Parameter | None
    chain: Chain

    @property
    def columns(self) -> int:
        """N."""
        return self.weight.source.shape[0 if self.layout == "rows" else 1]


def product(builder: Builder, index: int, node: Node) -> None:
    """MatMul or Gemm of a tensor with a parameter; with others of the same tensor, one product."""
    linear = _linear(builder, index)
    if linear is None:
        builder.refuse(node, "a product of two tensors; wants a parameter as the second")
    family = [linear, *_siblings(builder, linear)]
    if len(family) > 1:
        _emit_merged(builder, family)
    else:
        last = linear.chain.nodes[-1] if linear.chain.nodes else index
        builder.when(last, index, lambda: _emit(builder, linear))


def _linear(builder: Builder, index: int) -> Linear | None:
    node = builder.graph.nodes[index]
    weight = builder.parameter(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        return None
    bias = None
    stored_rows = weight.transposed
    if node.operator == "Gemm":
        plain = node.number("alpha", 1.0) == node.number("beta", 1.0) == 1.0
        if not plain or node.whole("transA", 0):
            builder.refuse(node, "alpha, beta or transA")
        stored_rows = stored_rows != bool(node.whole("transB", 0))
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = builder.parameter(node.inputs[2])
            if bias is None or bias.shape != (builder.shape(node.outputs[0])[-1],):
                builder.refuse(node, "a bias that is no vector of parameters")
    shape = builder.shape(node.outputs[0])
    result = View("", builder.dtype, shape, contiguous(shape))
    chain = follow(builder, index, len(shape) - 1, result, bias is None)
    layout: Layout = "rows" if stored_rows else "transposed"
    return Linear(index, node, weight, layout, bias or chain.bias, chain)


def _siblings(builder: Builder, first: Linear) -> list[Linear]:
    """Other products of the same tensor that can share one: nothing but a bias follows."""
    if not _shares(builder, first):
        return []
    found = []
    for index in dict.fromkeys(builder.readers(first.node.inputs[0])):
        if index == OUTPUT or index <= first.index or index in builder.claimed:
            continue
        node = builder.graph.nodes[index]
        if node.operator != first.node.operator or node.inputs[0] != first.node.inputs[0]:
            continue
        if builder.parameter(node.inputs[1]) is None:
            continue
        claimed = set(builder.claimed)
        linear = _linear(builder, index)
        if (
            linear is not None
            and _shares(builder, linear)
            and (linear.bias is None) == (first.bias is None)
            and linear.layout == first.layout == "rows"
        ):
            found.append(linear)
        else:
            builder.claimed = claimed
    return found


def _shares(builder: Builder, linear: Linear) -> bool:
    chain = linear.chain
    if chain.activation != "none" or chain.residual or chain.vector:
        return False
    return OUTPUT not in builder.readers(chain.value)


def _left(builder: Builder, node: Node) -> View:
    """The tensor as rows, copied where its memory has no rows."""
    view = builder.arithmetic(node, node.inputs[0])
    return rows(view) or rows(builder.copied(node.inputs[0], view)) or view


def _bias(builder: Builder, biases: Sequence[Parameter | None], layout: Layout) -> str | None:
    found = [bias for bias in biases if bias is not None]
    if not found:
        return None
    return builder.weight(found, layout, (sum(bias.source.shape[0] for bias in found),))


def _emit(builder: Builder, linear: Linear) -> None:
    chain = linear.chain
    left = _left(builder, linear.node)
    gated = chain.activation == "geglu"
    if gated and linear.layout == "transposed":
        builder.refuse(linear.node, "a GEGLU of weights that are stored [K, N]")
    columns = linear.columns // 2 if gated else linear.columns
    layout: Layout = "geglu" if gated else linear.layout
    shape = (*builder.shape(linear.node.outputs[0])[:-1], columns)
    output = builder.target(chain.value, (left.shape[0], columns), chain.steps, rows)
    result = _as(output, shape)
    bias = _bias(builder, [linear.bias], "geglu" if gated else "rows")
    builder.emit(
        Product(
            name=linear.weight.source.name.removesuffix(".weight"),
            sources=(left,),
            weight=builder.weight([linear.weight], layout, (linear.columns, left.shape[1])),
            columns=linear.columns,
            image_rows=prod(shape[1:-1]),
            epilogue=epilogue(builder, chain, bias, result, rows),
            output=output,
        )
    )
    builder.keep(chain.value, result, chain.steps)


def _emit_merged(builder: Builder, family: Sequence[Linear]) -> None:
    """One product for all; each result is some of its columns."""
    first = family[0]
    left = _left(builder, first.node)
    columns = sum(linear.columns for linear in family)
    output = builder.new(first.chain.value, (left.shape[0], columns))
    shape = builder.shape(first.node.outputs[0])
    builder.emit(
        Product(
            name=first.weight.source.name.removesuffix(".weight"),
            sources=(left,),
            weight=builder.weight([one.weight for one in family], "rows", (columns, left.shape[1])),
            columns=columns,
            image_rows=prod(shape[1:-1]),
            epilogue=Epilogue(bias=_bias(builder, [one.bias for one in family], "rows")),
            output=output,
        )
    )
    start = 0
    for linear in family:
        part = narrowed(output, 1, start, linear.columns)
        builder.values[linear.chain.value] = Tensor(_as(part, (*shape[:-1], linear.columns)))
        builder.claimed.update((linear.index, *linear.chain.nodes))
        start += linear.columns


def _as(output: View, shape: Sequence[int]) -> View:
    """Rows under the graph's shape; the rows of a matrix can always be cut so."""
    found = reshaped(output, shape)
    assert found is not None
    return found


RULES = {"MatMul": product, "Gemm": product}

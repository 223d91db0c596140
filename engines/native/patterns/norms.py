"""Group norms, with the SiLU behind them, and layer norms."""

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.patterns.epilogue import swish
from diffusion_rt.engines.native.plan import GroupNorm, LayerNorm, View
from diffusion_rt.engines.native.values import Tensor
from diffusion_rt.engines.native.views import inverse, permuted, points, reshaped, rows


def group_norm(builder: Builder, index: int, node: Node) -> None:
    """GroupNormalization over pictures or sequences, and the SiLU that alone reads it."""
    tensor = builder.values.get(node.inputs[0])
    if not isinstance(tensor, Tensor) or tensor.enlarged is not None or any(tensor.padding):
        builder.refuse(node, "an input that is no tensor of numbers")
    views = [tensor.view] if tensor.beside is None else [tensor.view, tensor.beside]
    shape = builder.shape(node.outputs[0])
    weight, bias = _parameters(builder, node, shape[1])
    sources = []
    for view in views:
        view = builder.cast(node.inputs[0], view)
        found = points(view)
        if found is None:
            found = points(_by_channel(builder, node.inputs[0], view))
        assert found is not None, "a copy lies as it was asked for"
        sources.append(found)
    groups = node.whole("num_groups", 0)
    if groups < 1 or shape[1] % groups:
        builder.refuse(node, f"{shape[1]} channels in {groups} groups")
    value = node.outputs[0]
    taken = swish(builder, value)
    if len(taken) == 2:
        builder.claimed.update(taken)
        value = builder.graph.nodes[taken[-1]].outputs[0]
    pixels = sources[0].shape[1]
    output = builder.target(value, (shape[0], pixels, shape[1]), fit=points)
    builder.emit(
        GroupNorm(
            name=builder.weights[weight].sources[0].name.removesuffix(".weight"),
            sources=tuple(sources),
            weight=weight,
            bias=bias,
            groups=groups,
            epsilon=node.number("epsilon", 1e-5),
            silu=len(taken) == 2,
            output=output,
        )
    )
    order = (0, *range(2, len(shape)), 1)
    result = reshaped(output, [shape[axis] for axis in order])
    assert result is not None
    builder.keep(value, permuted(result, inverse(order)))


def _by_channel(builder: Builder, name: str, view: View) -> View:
    """A copy with channels last in memory."""
    order = (0, *range(2, len(view.shape)), 1)
    return permuted(builder.copied(name, permuted(view, order)), inverse(order))


def layer_norm(builder: Builder, index: int, node: Node) -> None:
    """LayerNormalization over the last dimension."""
    view = builder.arithmetic(node, node.inputs[0])
    if node.whole("axis", -1) not in (-1, len(view.shape) - 1) or len(node.outputs) > 1:
        builder.refuse(node, "another axis than the last, or its statistics")
    weight, bias = _parameters(builder, node, view.shape[-1])
    source = rows(view) or rows(builder.copied(node.inputs[0], view))
    assert source is not None, "a copy is row-major"
    output = builder.target(node.outputs[0], source.shape, fit=rows)
    builder.emit(
        LayerNorm(
            name=builder.weights[weight].sources[0].name.removesuffix(".weight"),
            source=source,
            weight=weight,
            bias=bias,
            epsilon=node.number("epsilon", 1e-5),
            output=output,
        )
    )
    result = reshaped(output, view.shape)
    assert result is not None
    builder.keep(node.outputs[0], result)


def _parameters(builder: Builder, node: Node, channels: int) -> tuple[str, str]:
    """Weight and bias, without which the exporter writes no norm."""
    found = [builder.parameter(name) for name in node.inputs[1:3]]
    names = [
        builder.weight([one], "rows", (channels,))
        for one in found
        if one is not None and one.shape == (channels,)
    ]
    if len(names) != 2:
        builder.refuse(node, f"a weight or bias that is no vector of {channels} parameters")
    return names[0], names[1]


RULES = {"GroupNormalization": group_norm, "LayerNormalization": layer_norm}

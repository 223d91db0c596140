"""Functions of each number that no product takes in."""

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.patterns.epilogue import swish
from diffusion_rt.engines.native.plan import Elementwise, Function, View
from diffusion_rt.engines.native.views import broadcast

MOST_DIMENSIONS = 4


def pair(builder: Builder, index: int, node: Node) -> None:
    """Add and Mul, of two tensors or of a tensor and a number."""
    function: Function = "add" if node.operator == "Add" else "multiply"
    shape = builder.shape(node.outputs[0])
    views, scalars = [], []
    for name in node.inputs:
        array = builder.array(name)
        if array is not None and array.size == 1:
            scalars.append(float(array.item()))
            continue
        if array is not None or builder.parameter(name) is not None:
            builder.refuse(node, "a parameter that no product or convolution takes in")
        view = broadcast(builder.arithmetic(node, name), shape)
        if view is None:
            builder.refuse(node, "shapes that do not fit")
        views.append(view)
    if not views:
        builder.refuse(node, "no tensor of numbers")
    _emit(builder, node, node.outputs[0], function, views, scalars)


def single(builder: Builder, index: int, node: Node) -> None:
    """Sigmoid, with the Mul that makes it SiLU, and Gelu."""
    view = builder.arithmetic(node, node.inputs[0])
    value = node.outputs[0]
    if node.operator == "Gelu":
        if node.word("approximate", "none") != "none":
            builder.refuse(node, "an approximation; wants the exact function")
        _emit(builder, node, value, "gelu", [view], [])
        return
    taken = swish(builder, node.inputs[0])
    if len(taken) == 2:
        builder.claimed.update(taken)
        value = builder.graph.nodes[taken[-1]].outputs[0]
    _emit(builder, node, value, "silu" if taken else "sigmoid", [view], [])


def clip(builder: Builder, index: int, node: Node) -> None:
    """Clip between two numbers."""
    bounds = [builder.array(name) for name in node.inputs[1:3] if name]
    if len(bounds) != 2 or any(bound is None or bound.size != 1 for bound in bounds):
        builder.refuse(node, "bounds that are no numbers")
    scalars = [float(bound.item()) for bound in bounds if bound is not None]
    view = builder.arithmetic(node, node.inputs[0])
    _emit(builder, node, node.outputs[0], "clip", [view], scalars)


def _emit(
    builder: Builder,
    node: Node,
    value: str,
    function: Function,
    views: list[View],
    scalars: list[float],
) -> None:
    shape = builder.shape(value)
    if len(shape) > MOST_DIMENSIONS:
        builder.refuse(node, f"{len(shape)} dimensions, at most {MOST_DIMENSIONS} are known")
    place = builder.place(value)
    if place is not None and place.dtype == builder.dtype:
        output = place
    else:
        output = builder.like(value, next((v for v in views if 0 not in v.strides), views[0]))
    builder.emit(
        Elementwise(
            name=value,
            function=function,
            sources=tuple(views),
            scalars=tuple(scalars),
            output=output,
        )
    )
    builder.keep(value, output)


RULES = {"Add": pair, "Mul": pair, "Sigmoid": single, "Gelu": single, "Clip": clip}

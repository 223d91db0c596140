"""What follows a product or convolution and is done before its result is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from diffusion_rt.engines.native.builder import OUTPUT, VIEWS, Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.plan import Activation, Copy, Epilogue, View
from diffusion_rt.engines.native.values import Parameter
from diffusion_rt.engines.native.views import reshaped

GATES = 8  # values and gates alternate by so many
QUICK = 1.702  # of quick_gelu: x · sigmoid(1.702 x)


@dataclass(slots=True)
class Chain:
    """Operators that follow one another without another reader in between."""

    value: str  # what the last of them makes
    bias: Parameter | None = None
    vector: str | None = None
    activation: Activation = "none"
    residual: str | None = None
    steps: list[Node] = field(default_factory=list)  # views, between the result and the residual
    nodes: list[int] = field(default_factory=list)  # all, in order


def follow(builder: Builder, index: int, channels: int, result: View, bias: bool) -> Chain:
    """The longest chain behind node `index` that one epilogue can do.

    `channels` is the axis of N in the node's output, `result` a view of that output as it will lie
    in memory, `bias` whether the bias may still come as an Add.
    """
    chain = Chain(builder.graph.nodes[index].outputs[0])
    if bias:
        _take_bias(builder, chain, channels)
    _take_vector(builder, chain, channels)
    _take_activation(builder, chain, channels)
    if chain.activation != "geglu":
        _take_residual(builder, chain, result)
    return chain


def epilogue(
    builder: Builder,
    chain: Chain,
    bias: str | None,
    result: View,
    fit: Callable[[View], View | None],
) -> Epilogue:
    """The epilogue of a chain, when all it reads has been made.

    `result` is the node's output as it lies in memory under the graph's shape; `fit` gives the view
    that the operation uses of one such.
    """
    vector = residual = None
    images = result.shape[0]
    if chain.vector is not None:
        node = builder.graph.nodes[chain.nodes[-1]]
        found = builder.arithmetic(node, chain.vector)
        vector = reshaped(found, (images, prod(found.shape) // images))
        if vector is None or vector.strides[1] != 1:
            vector = reshaped(
                builder.copied(chain.vector, found), (images, prod(found.shape) // images)
            )
    if chain.residual is not None:
        node = builder.graph.nodes[chain.nodes[-1]]
        residual = _residual(builder, chain, builder.arithmetic(node, chain.residual), result, fit)
    return Epilogue(bias=bias, vector=vector, activation=chain.activation, residual=residual)


def _residual(
    builder: Builder,
    chain: Chain,
    view: View,
    result: View,
    fit: Callable[[View], View | None],
) -> View:
    back = builder.back(view, chain.steps)
    fitting = None if back is None else fit(back)
    if fitting is not None:
        return fitting
    # It lies otherwise in memory: copied into the order of the result.
    copy = builder.like(f"{chain.residual}.copy", result)
    as_read = builder.forth(copy, chain.steps)
    fitting = fit(copy)
    assert as_read is not None, "a chain ends where its views do"
    assert fitting is not None
    builder.emit(Copy(name=f"{chain.residual}.copy", source=view, output=as_read))
    return fitting


def _next(builder: Builder, chain: Chain, operator: str) -> tuple[int, Node] | None:
    index = builder.only_reader(chain.value)
    if index is None or builder.graph.nodes[index].operator != operator:
        return None
    return index, builder.graph.nodes[index]


def _take(builder: Builder, chain: Chain, *indices: int) -> None:
    builder.claimed.update(indices)
    chain.nodes += indices
    chain.value = builder.graph.nodes[indices[-1]].outputs[0]


def _other(node: Node, name: str) -> str:
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def _take_bias(builder: Builder, chain: Chain, channels: int) -> None:
    shape = builder.shape(chain.value)
    if (found := _next(builder, chain, "Add")) and channels == len(shape) - 1:
        bias = builder.parameter(_other(found[1], chain.value))
        if bias is not None and bias.source.shape == (shape[-1],):
            chain.bias = bias
            _take(builder, chain, found[0])


def _take_vector(builder: Builder, chain: Chain, channels: int) -> None:
    """One number for each image and channel: a projection of the timestep."""
    shape = builder.shape(chain.value)
    wanted = tuple(n if axis in (0, channels) else 1 for axis, n in enumerate(shape))
    if (found := _next(builder, chain, "Add")) and len(shape) > 2 and wanted != shape:
        other = _other(found[1], chain.value)
        if builder.shape(other) == wanted and builder.parameter(other) is None:
            chain.vector = other
            _take(builder, chain, found[0])


def _take_activation(builder: Builder, chain: Chain, channels: int) -> None:
    if chain.vector is None and _take_geglu(builder, chain, channels):
        return
    if (found := _next(builder, chain, "Gelu")) and found[1].word("approximate", "none") == "none":
        chain.activation = "gelu"
        _take(builder, chain, found[0])
    elif indices := swish(builder, chain.value):
        chain.activation = "silu" if len(indices) == 2 else "quick_gelu"
        _take(builder, chain, *indices)


def swish(builder: Builder, name: str) -> tuple[int, ...]:
    """The nodes of x · sigmoid(x), or of x · sigmoid(1.702 x), that read all there is of x."""
    readers = builder.readers(name)
    if len(readers) != 2 or OUTPUT in readers or builder.claimed.intersection(readers):
        return ()
    first, last = sorted(readers)
    nodes = builder.graph.nodes
    taken: tuple[int, ...] = (first,)
    if nodes[first].operator == "Mul":
        factor = builder.array(_other(nodes[first], name))
        sigmoid = builder.only_reader(nodes[first].outputs[0])
        # In float16 the factor is 1.7021.
        if factor is None or factor.size != 1 or abs(float(factor.item()) - QUICK) > 1e-3:
            return ()
        if sigmoid is None:
            return ()
        taken = (first, sigmoid)
    gate = nodes[taken[-1]]
    if gate.operator != "Sigmoid" or nodes[last].operator != "Mul":
        return ()
    if builder.only_reader(gate.outputs[0]) != last or first == last:
        return ()
    shapes = {builder.shape(nodes[index].outputs[0]) for index in (*taken, last)}
    return (*taken, last) if shapes == {builder.shape(name)} else ()


def _take_geglu(builder: Builder, chain: Chain, channels: int) -> bool:
    """value · gelu(gate), both halves of one product."""
    shape = builder.shape(chain.value)
    found = _next(builder, chain, "Split")
    if found is None or channels != len(shape) - 1 or shape[-1] % (2 * GATES):
        return False
    index, split = found
    halves = [builder.shape(name) for name in split.outputs]
    if split.whole("axis", 0) % len(shape) != channels or len(halves) != 2:
        return False
    if halves[0] != halves[1]:
        return False
    value, gate = split.outputs
    gelu, product = builder.only_reader(gate), builder.only_reader(value)
    if gelu is None or product is None:
        return False
    nodes = builder.graph.nodes
    if nodes[gelu].operator != "Gelu" or nodes[gelu].word("approximate", "none") != "none":
        return False
    if nodes[product].operator != "Mul" or builder.only_reader(nodes[gelu].outputs[0]) != product:
        return False
    chain.activation = "geglu"
    _take(builder, chain, index, gelu, product)
    return True


def _take_residual(builder: Builder, chain: Chain, result: View) -> None:
    """An Add of as many numbers, perhaps behind operators that only view them otherwise."""
    steps: list[Node] = []
    indices: list[int] = []
    value, view = chain.value, result
    while True:
        index = builder.only_reader(value)
        if index is None:
            return
        node = builder.graph.nodes[index]
        indices.append(index)
        if node.operator in VIEWS and node.inputs[0] == value:
            seen = builder.forth(view, [node])
            if seen is None:
                return
            value, view = node.outputs[0], seen
            steps.append(node)
            continue
        if node.operator != "Add":
            return
        other = _other(node, value)
        if builder.shape(other) != builder.shape(value):
            return
        if builder.parameter(other) is not None or builder.array(other) is not None:
            return
        chain.residual = other
        chain.steps = steps
        _take(builder, chain, *indices)
        return

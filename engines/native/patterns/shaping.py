"""Operators that view numbers otherwise, and concatenations, whose parts are written in place."""

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.plan import Copy, View
from diffusion_rt.engines.native.sizes import Unsuitable, slices
from diffusion_rt.engines.native.values import Found, Matches, Parameter, Tensor, Waves
from diffusion_rt.engines.native.views import narrowed, permuted

FLOATS = (1, 10, 16)  # TensorProto.DataType: float32, float16, bfloat16
WHOLES = (6, 7)


def view(builder: Builder, index: int, node: Node) -> None:
    """Reshape, Squeeze, Unsqueeze, Identity: a view, or a copy where memory is otherwise."""
    name, made = node.inputs[0], node.outputs[0]
    value = builder.values.get(name)
    unread = isinstance(value, Found) and node.operator == "Unsqueeze"
    if value is not None and (unread or node.operator == "Identity"):
        builder.values[made] = value
    else:
        source = builder.tensor(node, name)
        found = builder.forth(source, [node])
        if found is None:
            found = builder.forth(builder.copied(name, source), [node])
        assert found is not None, "a row-major tensor has every shape"
        builder.values[made] = Tensor(found)


def transpose(builder: Builder, index: int, node: Node) -> None:
    """Transpose: a view, or a parameter that is read the other way."""
    value = builder.values.get(node.inputs[0])
    order = builder.order(node)
    if isinstance(value, Parameter):
        if order != (1, 0):
            builder.refuse(node, f"a parameter in the order {list(order)}")
        builder.values[node.outputs[0]] = Parameter(value.source, not value.transposed)
    else:
        source = builder.tensor(node, node.inputs[0])
        builder.values[node.outputs[0]] = Tensor(permuted(source, order))


def cast(builder: Builder, index: int, node: Node) -> None:
    """Cast: between real numbers the plan's own type decides; of ids it changes nothing."""
    value = builder.values.get(node.inputs[0])
    to = node.whole("to", 0)
    kinds = FLOATS if isinstance(value, (Parameter, Waves)) else WHOLES
    if isinstance(value, (Parameter, Waves, Matches)) and to in kinds:
        builder.values[node.outputs[0]] = value
    else:
        source = builder.tensor(node, node.inputs[0])
        real = source.dtype != "int64"
        if to not in (FLOATS if real else WHOLES):
            builder.refuse(node, f"a cast of {source.dtype} to type {to}")
        builder.values[node.outputs[0]] = Tensor(source)


def split(builder: Builder, index: int, node: Node) -> None:
    """Split: views."""
    source = builder.tensor(node, node.inputs[0])
    axis, start = node.whole("axis", 0) % len(source.shape), 0
    for name in node.outputs:
        length = builder.shape(name)[axis]
        builder.values[name] = Tensor(narrowed(source, axis, start, length))
        start += length


def cut(builder: Builder, index: int, node: Node) -> None:
    """Slice: a view."""
    source = builder.tensor(node, node.inputs[0])
    try:
        parts = slices(node, source.shape, [builder.sizes[name] for name in node.inputs])
    except Unsuitable as wrong:  # pragma: no cover - sizes_of has met the same slices
        builder.refuse(node, str(wrong))
    for axis, part in enumerate(parts):
        source = narrowed(source, axis, part.start, part.stop - part.start)
    builder.values[node.outputs[0]] = Tensor(source)


def concat(builder: Builder, index: int, node: Node) -> None:
    """Concat: parts that stay apart, or parts that were written in their places; else copies."""
    if builder.stays_apart(node):
        first, second = (builder.arithmetic(node, name) for name in node.inputs)
        builder.values[node.outputs[0]] = Tensor(first, beside=second)
        return
    for number, name in enumerate(node.inputs):
        part = builder.joint_part(index, number)
        source = builder.tensor(node, name)
        if not same(source, part):
            builder.emit(Copy(name=name, source=source, output=part))
    builder.values[node.outputs[0]] = Tensor(builder.joint(index))


def same(left: View, right: View) -> bool:
    """Whether two views reach the same elements in the same order."""
    if (left.buffer, left.offset, left.shape) != (right.buffer, right.offset, right.shape):
        return False
    pairs = zip(left.shape, left.strides, right.strides, strict=True)
    return all(a == b for size, a, b in pairs if size != 1)


RULES = {
    "Identity": view,
    "Reshape": view,
    "Squeeze": view,
    "Unsqueeze": view,
    "Transpose": transpose,
    "Cast": cast,
    "Split": split,
    "Slice": cut,
    "Concat": concat,
}

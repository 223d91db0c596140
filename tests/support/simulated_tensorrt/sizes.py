"""Which pictures within a network are of one size, said by names, as an exported model says it.

TensorRT finds that out by itself, and what it is given has no such names. ONNX Runtime wants them:
what is added to a convolution's result it adds within the convolution, where it can tell that both
are of one size. That rounds once less.
"""

from collections.abc import Sequence
from itertools import count

from onnx import ModelProto, NodeProto, TensorProto, helper

Sizes = tuple[int | str, ...]

_SAME = ("GroupNormalization", "LayerNormalization", "Sigmoid", "Gelu", "Clip", "Cast")


def name_sizes(model: ModelProto) -> None:
    """Declare the sizes of the pictures [b, c, h, w] in a network: equal names, equal sizes."""
    graph, fresh = model.graph, count()
    vectors = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known: dict[str, Sizes] = {}
    for value in graph.input:
        sizes = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        if len(sizes) == 4:
            known[value.name] = sizes
    batch = next((sizes[0] for sizes in known.values()), "batch")

    def picture(name: str, channels: int) -> Sizes:
        """The sizes of a picture; new names where it comes of what is not looked into here."""
        return known.setdefault(name, (batch, channels, f"h{next(fresh)}", f"w{next(fresh)}"))

    for node in graph.node:
        found: Sizes | None = None
        if node.op_type == "Conv":
            channels, inner, *sides = vectors[node.input[1]]
            found = picture(node.input[0], inner)
            if not _keeps_size(node, sides):
                found = picture(node.output[0], channels)
            found = (batch, channels, *found[2:])
        elif node.op_type in _SAME:
            if node.op_type == "GroupNormalization" and node.input[1] in vectors:
                picture(node.input[0], *vectors[node.input[1]])
            found = known.get(node.input[0])
        elif node.op_type in ("Add", "Mul"):
            found = next((known[name] for name in node.input if name in known), None)
        if found:
            known.setdefault(node.output[0], found)
    _declare(model, known)


def _keeps_size(node: NodeProto, sides: Sequence[int]) -> bool:
    """Whether a convolution's result is as high and wide as its input."""
    given = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    pads = given.get("pads", [0, 0, 0, 0])
    whole = [low + high for low, high in zip(pads[:2], pads[2:], strict=True)]
    return given.get("strides", [1, 1]) == [1, 1] and whole == [side - 1 for side in sides]


def _declare(model: ModelProto, known: dict[str, Sizes]) -> None:
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    del graph.value_info[:]
    for name, sizes in known.items():
        if kind := types.get(name):
            wide = TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind
            graph.value_info.append(helper.make_tensor_value_info(name, wide, sizes))

"""A float32 graph written for float16 arithmetic.

What is computed from timesteps, sizes and constants alone, before any weight meets it, stays
float32: a timestep of 999.5 or the sine of 1e3 has no place in float16. It is cast where it first
meets anything else. Norms compute in float32 inside, by their own attribute.
"""

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

OPSET = 23  # of every exported graph

FLOAT32, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def to_float16(model: ir.Model, keep: Collection[str]) -> None:
    """Write the float32 graph of `model` for float16, in place; inputs in `keep` stay float32.

    Raises ValueError where a constant is out of float16's range.
    """
    graph = model.graph
    wide: set[ir.Value | None] = {value for value in graph.inputs if value.name in keep}
    for value in graph.inputs:
        if value.dtype == FLOAT32 and value not in wide:
            value.type = ir.TensorType(FLOAT16)
    narrowed: dict[ir.Value, ir.Value] = {}  # float32 -> float16
    for node in list(graph):
        floats = [value for value in node.inputs if value is not None and value.dtype == FLOAT32]
        varying = [value for value in floats if not value.is_initializer()]
        if varying and wide.issuperset(varying) and not _has_float16(node):
            wide.update(node.outputs)
            continue
        for index, read in enumerate(node.inputs):
            if read is not None and read.dtype == FLOAT32 and _takes_float16(node, index):
                if read not in narrowed:
                    narrowed[read] = _narrow(read, graph, node)
                node.replace_input_with(index, narrowed[read])
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT32:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT16)
        for output in node.outputs:
            if output.dtype == FLOAT32:
                output.type = ir.TensorType(FLOAT16)  # never output.dtype: clones share their types
    for value in [v for v in graph.initializers.values() if not v.uses()]:
        del graph.initializers[value.name or ""]


def _takes_float16(node: ir.Node, index: int) -> bool:
    """Whether the operator's definition allows it; the scales of Resize are always float32."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    return "tensor(float16)" in schema.inputs[min(index, len(schema.inputs) - 1)].types


def _has_float16(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == FLOAT16 for value in node.inputs)


def _narrow(value: ir.Value, graph: ir.Graph, reader: ir.Node) -> ir.Value:
    """`value` as float16: another constant, or a Cast in front of its first reader."""
    name = f"{value.name}.float16"
    if not value.is_initializer():
        cast = ir.node("Cast", [value], {"to": FLOAT16}, name=name)
        cast.outputs[0].name = name
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(FLOAT16), value.shape
        graph.insert_before(reader, cast)
        return cast.outputs[0]
    assert value.const_value is not None
    array = value.const_value.numpy()
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float16)
    if not np.array_equal(np.isfinite(array), np.isfinite(narrow)):
        raise ValueError(f"the constant {value.name} is out of float16's range")
    constant = ir.Value(name=name, const_value=ir.tensor(narrow, name=name))
    constant.type, constant.shape = ir.TensorType(FLOAT16), ir.Shape(narrow.shape)
    graph.initializers.add(constant)
    return constant

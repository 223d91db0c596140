"""Exact tidying of a traced graph: the same values by fewer nodes, high-level operators whole.

Constants are folded and what then does nothing is removed. No parameter is touched: in these graphs
parameters are inputs, whose values no pass can know.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants_ir, inline

# Sequences come from `chunk`; every other runtime than ONNX Runtime wants Split.
SEQUENCES = {"SplitToSequence", "SequenceAt", "SequenceConstruct", "ConcatFromSequence"}


def simplify(model: ir.Model) -> None:
    """Tidy the graph of `model` in place. A constant keeps its type; the graph its signature."""
    inline(model)
    for _ in range(2):  # what tidying makes constant is folded the second time
        fold_constants_ir(model, onnx_shape_inference=True)
        for node in list(model.graph):
            for rule in RULES:
                if node.graph is not None:
                    rule(node)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)
    _name_constants(model.graph)
    left = SEQUENCES.intersection(node.op_type for node in model.graph)
    assert not left, f"sequences left in the graph: {left}"


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Let all readers of a node with one output read `value`, of the same type and shape."""
    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    return left.shape is not None and right.shape is not None and left.shape == right.shape


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def drop_neutral(node: ir.Node) -> None:
    """x / 1, x * 1, x + 0 and x - 0 are x."""
    neutral = {"Div": 1, "Mul": 1, "Add": 0, "Sub": 0}.get(node.op_type)
    if neutral is None:
        return
    for side in (1, 0) if node.op_type in ("Mul", "Add") else (1,):
        constant, other = _constant(node.inputs[side]), node.inputs[1 - side]
        if constant is None or constant.size != 1 or constant.item() != neutral or other is None:
            continue
        if other.dtype == node.outputs[0].dtype and _same_shape(other, node.outputs[0]):
            _replace(node, other)
            return


def drop_idle(node: ir.Node) -> None:
    """Expand or Reshape to the same shape, Cast to the same type, Transpose to the same order."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type not in ("Expand", "Reshape", "Cast", "Transpose") or source is None:
        return
    if node.op_type == "Transpose":
        order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else [1, 0]
        idle = order == sorted(order)
    else:
        idle = _same_shape(source, node.outputs[0]) and source.dtype == node.outputs[0].dtype
    if idle and source.dtype is not None:
        _replace(node, source)


def reshape_by_constant(node: ir.Node) -> None:
    """Spell a Reshape's target without asking any tensor for its size, where that can be done.

    0 is the size at the same place of the input, -1 the one that is left: [0, -1, heads, 64].
    """
    source, output = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if node.op_type != "Reshape" or source is None or source.shape is None or output.shape is None:
        return
    target = []
    for axis, size in enumerate(output.shape):
        if isinstance(size, int):
            target.append(size)
        elif axis < len(source.shape) and source.shape[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or 0 in [d for d in output.shape if isinstance(d, int)]:
        return
    assert node.graph is not None
    constant = ir.node("Constant", [], {"value": ir.tensor(np.array(target, dtype=np.int64))})
    constant.outputs[0].name = f"{output.name}.shape"
    node.graph.insert_before(node, constant)
    node.replace_input_with(1, constant.outputs[0])
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def merge_unsqueezes(node: ir.Node) -> None:
    """Unsqueeze of an Unsqueeze, both at constant axes that rise, is one Unsqueeze."""
    source = node.inputs[0] if node.op_type == "Unsqueeze" else None
    first = source.producer() if source is not None else None
    if source is None or first is None or first.op_type != "Unsqueeze" or source.shape is None:
        return
    axes = [_constant(first.inputs[1]), _constant(node.inputs[1])]
    if axes[0] is None or axes[1] is None or axes[0].min() < 0 or axes[1].min() <= axes[0].max():
        return
    assert node.graph is not None
    both = ir.node("Constant", [], {"value": ir.tensor(np.concatenate([axes[0], axes[1]]))})
    both.outputs[0].name = f"{node.outputs[0].name}.axes"
    node.graph.insert_before(node, both)
    node.replace_input_with(0, first.inputs[0])
    node.replace_input_with(1, both.outputs[0])


RULES: tuple[Callable[[ir.Node], None], ...] = (
    drop_neutral,
    drop_idle,
    reshape_by_constant,
    merge_unsqueezes,
)


def _name_constants(graph: ir.Graph) -> None:
    """Number the constants, since some come without a name or with the name of their history."""
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for number, value in enumerate(constants):
        value.name = f"constant_{number}"
        graph.initializers.add(value)

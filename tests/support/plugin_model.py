"""Graphs with the attention plugin, written in standard operators again: what any runtime runs."""

import struct
from typing import Any

import onnx
from onnx import helper

from diffusion_rt.engines.trt.plugin_edit import NAME, NAMESPACE

_TURN = [0, 2, 1, 3]


def plugins_of(graph: Any) -> list[Any]:
    """The plugin's nodes."""
    return [n for n in graph.node if n.op_type == NAME and n.domain == NAMESPACE]


def to_standard(model: Any) -> None:
    """Put `Attention`, with the transposes it wants, in the place of every plugin."""
    graph = model.graph
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != NAME or node.domain != NAMESPACE:
            nodes.append(node)
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        name, inputs, output = node.output[0], list(node.input), node.output[0]
        by_head = (given["query_by_head"], given["key_by_head"], given["key_by_head"])
        for place, turned in enumerate(by_head):
            if not turned:
                was, inputs[place] = inputs[place], f"{name}.turned.{place}"
                nodes.append(helper.make_node("Transpose", [was], [inputs[place]], perm=_TURN))
        if not given["query_by_head"]:
            output = f"{name}.by_head"
        (scale,) = struct.unpack("<f", struct.pack("<i", given["scale_bits"]))
        nodes.append(helper.make_node("Attention", inputs, [output], scale=scale))
        if not given["query_by_head"]:
            nodes.append(helper.make_node("Transpose", [output], [name], perm=_TURN))
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [each for each in model.opset_import if each.domain != NAMESPACE]
    del model.opset_import[:]
    model.opset_import.extend(kept)

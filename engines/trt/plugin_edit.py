"""Attention as our plugin in a graph for TensorRT, with the transposes around it left out.

The exported graph splits heads by `Reshape` to [batch, tokens, heads, head_size] and turns that by
`Transpose` to what the operator `Attention` wants, [batch, heads, tokens, head_size]; after it, the
same backwards. The kernel reads and writes both, so a turn that serves it alone is dropped.
"""

import math
from dataclasses import fields

from diffusion_rt.engines.protobuf import Refused
from diffusion_rt.engines.trt.onnx_graph import (
    FLOAT16,
    Graph,
    Node,
    float_of,
    int_attribute,
    int_of,
    ints_of,
    text_attribute,
)
from diffusion_rt.kernels.attention_plugin import Layout, scale_bits
from diffusion_rt.kernels.driver.errors import Misuse

NAMESPACE, NAME, VERSION = "diffusion_rt", "attention", "1"
_TURN = [0, 2, 1, 3]


def to_plugin(graph: Graph) -> None:
    """Put the plugin in the place of every `Attention`, in place.

    Raises Refused for an attention that the kernel does not compute: with a mask, causal, in
    another type than float16, or with heads of a size it does not take.
    """
    made = {output: node for node in graph.nodes for output in node.outputs}
    readers = graph.readers()
    for node in [node for node in graph.nodes if node.op == "Attention" and not node.domain]:
        heads, head_size = _heads(graph, node)
        given = float_of(node.attributes["scale"]) if "scale" in node.attributes else 0.0
        q, k, v = node.inputs[:3]
        (output,) = node.outputs
        after = [reader for reader, _ in readers.get(output, [])]
        plain = _turned(made.get(q)) and output not in graph.outputs
        query_by_head = not (plain and len(after) == 1 and _turned(after[0]))
        key_by_head = not (_turned(made.get(k)) and _turned(made.get(v)))
        if not query_by_head:
            q, output = made[q].inputs[0], after[0].outputs[0]
            graph.nodes.remove(after[0])
        if not key_by_head:
            k, v = made[k].inputs[0], made[v].inputs[0]
        try:
            layout = Layout(
                heads=heads,
                head_size=head_size,
                scale_bits=scale_bits(given or 1 / math.sqrt(head_size)),
                query_by_head=query_by_head,
                key_by_head=key_by_head,
            )
        except Misuse as refused:
            raise Refused(f"{node.name}: {refused}") from None
        place = graph.nodes.index(node)
        graph.nodes[place] = _plugin(node.name, [q, k, v], output, layout)
    _drop_unread_turns(graph)
    graph.import_domain(NAMESPACE, int(VERSION))


def _plugin(name: str, inputs: list[str], output: str, layout: Layout) -> Node:
    texts = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION}
    attributes = {key: text_attribute(key, text) for key, text in texts.items()}
    for field in fields(layout):
        attributes[field.name] = int_attribute(field.name, int(getattr(layout, field.name)))
    return Node(NAME, inputs, [output], name, attributes, NAMESPACE)


def _heads(graph: Graph, node: Node) -> tuple[int, int]:
    """How many heads an attention has, and their size."""
    if len(node.inputs) < 3 or any(node.inputs[3:]) or len(node.outputs) != 1:
        raise Refused(f"{node.name}: attention with a mask, which the plugin does not know")
    for name in ("is_causal", "softcap", "qk_matmul_output_mode", "softmax_precision"):
        if name in node.attributes:
            attribute = node.attributes[name]
            if int_of(attribute) or float_of(attribute):
                raise Refused(f"{node.name}: attention with {name}, which the plugin does not know")
    shapes = []
    for name in node.inputs[:3]:
        value = graph.values.get(name)
        shape = value.shape if value else None
        if value is None or value.dtype != FLOAT16 or shape is None or len(shape) != 4:
            raise Refused(f"{node.name}: {name} is not [batch, heads, tokens, head_size] float16")
        shapes.append((shape[1], shape[3]))
    (heads, head_size), *others = shapes
    if heads is None or head_size is None or any(other != shapes[0] for other in others):
        raise Refused(
            f"{node.name}: q, k and v have heads {shapes}; the same are wanted, in numbers"
        )
    return heads, head_size


def _turned(node: Node | None) -> bool:
    """Whether a node exchanges tokens and heads."""
    return (
        node is not None
        and node.op == "Transpose"
        and ints_of(node.attributes.get("perm", b"")) == _TURN
    )


def _drop_unread_turns(graph: Graph) -> None:
    read = graph.readers().keys() | set(graph.outputs)
    graph.nodes = [
        node for node in graph.nodes if not (_turned(node) and node.outputs[0] not in read)
    ]

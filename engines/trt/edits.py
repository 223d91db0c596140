"""What is changed in an exported graph so that TensorRT computes it as we mean it.

TensorRT 11 takes precision from the graph alone, so precision is written into the graph:
statistics of normalisations in float32, the VAE in bfloat16, attention in float32 where asked for.
A weight stored in another type than it is used in becomes an initializer of the type it is used in:
TensorRT's parser takes no convolution whose filter is the output of a Cast.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from diffusion_rt.engines.protobuf import Refused
from diffusion_rt.engines.trt.onnx_graph import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOATS,
    HALVES,
    Graph,
    Node,
    Tensor,
    Value,
    has_tensor,
    int_attribute,
    int_of,
)
from diffusion_rt.engines.trt.options import Edits
from diffusion_rt.engines.trt.plugin_edit import to_plugin
from diffusion_rt.engines.trt.weights import cast, held

NORMS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
NAMES = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}

# Inputs that are float32 whatever the operator computes in: regions and scales of Resize.
_ALWAYS_FLOAT32 = {("Resize", 1), ("Resize", 2)}

FUSED_HEADS = range(16, 257, 8)  # sizes of heads that TensorRT's fused attention takes


def edit(graph: Graph, edits: Edits, name: str) -> None:
    """Change the graph of `name` (of `spec.GRAPHS`) in place, as `edits` say.

    Raises Refused where it has an operator that these edits do not know how to treat.
    """
    fold_casts(graph)
    if edits.arithmetic == "bfloat16":
        to_bfloat16(graph)
    if edits.attention == "plugin":
        to_plugin(graph)
    mark_decomposable(graph, strict=name == "unet_step")
    widen_norms(graph)
    if edits.wide_attention:
        widen_attention(graph)
    settle(graph)


def fold_casts(graph: Graph) -> None:
    """Cast nodes over weights become weights of the type they cast to."""
    readers = graph.readers()
    folded: dict[str, str] = {}  # output of a Cast -> tensor
    for tensor in [t for t in graph.tensors.values() if t.source and t.dtype in FLOATS]:
        for node, _ in readers.get(tensor.name, []):
            dtype = _cast_to(node)
            if dtype in FLOATS and node.outputs[0] not in graph.outputs:
                folded[node.outputs[0]] = _as(graph, tensor, dtype)
    graph.nodes = [node for node in graph.nodes if node.outputs[0] not in folded]
    _rename_inputs(graph, folded)


def to_bfloat16(graph: Graph) -> None:
    """A float32 graph written for bfloat16; its inputs and outputs stay float32."""
    for node in graph.nodes:
        if any(has_tensor(attribute) for attribute in node.attributes.values()):
            raise Refused(f"a tensor within {node.op}, not known how to write it in bfloat16")
        if _cast_to(node) == FLOAT32:
            node.attributes["to"] = int_attribute("to", BFLOAT16)
        for place, name in enumerate(node.inputs):
            if name in graph.tensors and graph.tensors[name].dtype == FLOAT32:
                if (node.op, place) not in _ALWAYS_FLOAT32:
                    node.inputs[place] = _as(graph, graph.tensors[name], BFLOAT16)
            elif (node.op, place) in _ALWAYS_FLOAT32 and name:
                raise Refused(f"{node.op} with a computed scale")
    first, last = [], []
    for name in graph.inputs:
        if graph.dtype(name) == FLOAT32:
            narrow = f"{name}.bfloat16"
            _rename_inputs(graph, {name: narrow})
            first.append(_cast(name, narrow, BFLOAT16))
            graph.values[narrow] = Value(BFLOAT16, graph.value(name).shape)
    for name in graph.outputs:
        if graph.dtype(name) == FLOAT32:
            narrow = f"{name}.bfloat16"
            _rename(graph, name, narrow)
            last.append(_cast(narrow, name, FLOAT32))
            graph.values[narrow] = Value(BFLOAT16, graph.value(name).shape)
    graph.nodes = [*first, *graph.nodes, *last]
    ends = {*graph.inputs, *graph.outputs}
    for name, value in graph.values.items():
        if value.dtype == FLOAT32 and name not in ends:
            graph.values[name] = Value(BFLOAT16, value.shape)


def widen_norms(graph: Graph) -> None:
    """Normalisations of half precision compute in float32, scale and bias with them.

    The operators' own `stash_type` says so too, but TensorRT's parser does not heed it.
    """
    _surround(graph, lambda node: node.op in NORMS)


def widen_attention(graph: Graph) -> None:
    """Attention of half precision between casts to float32 and back.

    TensorRT 11.3 and later take that as the wish for float32 sums in its fused kernel.
    """
    _surround(graph, lambda node: node.op == "Attention")


def mark_decomposable(graph: Graph, *, strict: bool) -> None:
    """Let TensorRT spell an attention out where it has no fused kernel for it.

    Fused kernels are for half precision and heads of 16 to 256 in steps of 8, as the UNet's; the
    VAE's one head of 512 has none. `strict` leaves attention that a fused kernel should take as it
    is: the matrix of its scores would take gigabytes, and a build that fails says so.
    """
    for node in graph.nodes:
        if node.op == "Attention":
            query = graph.value(node.inputs[0] if node.inputs else "")
            head = query.shape[-1] if query.shape else None
            fused = query.dtype in HALVES and head in FUSED_HEADS and not any(node.inputs[3:])
            if not (strict and fused):
                node.attributes["TRT_decomposable"] = int_attribute("TRT_decomposable", 1)


def _surround(graph: Graph, chosen: Callable[[Node], bool]) -> None:
    """Give the chosen nodes of half precision float32 inputs and outputs of the type they had."""
    nodes: list[Node] = []
    widened: dict[str, str] = {}
    for node in graph.nodes:
        dtype = graph.dtype(node.inputs[0]) if node.inputs else 0
        if dtype not in HALVES or not chosen(node):
            nodes.append(node)
            continue
        for place, name in enumerate(node.inputs):
            if graph.dtype(name) not in HALVES:
                continue
            if name in graph.tensors:
                node.inputs[place] = _as(graph, graph.tensors[name], FLOAT32)
                continue
            if name not in widened:
                widened[name] = f"{name}.float32"
                nodes.append(_cast(name, widened[name], FLOAT32))
                graph.values[widened[name]] = Value(FLOAT32, graph.value(name).shape)
            node.inputs[place] = widened[name]
        output = node.outputs[0]
        node.outputs[0] = f"{output}.wide"
        graph.values[node.outputs[0]] = Value(FLOAT32, graph.value(output).shape)
        nodes += [node, _cast(node.outputs[0], output, dtype)]
    graph.nodes = nodes


def settle(graph: Graph) -> None:
    """Drop tensors that nobody reads; a weight used in one type only gets its own name back.

    Names are what refitting and LoRA go by.
    """
    read = graph.readers().keys() | set(graph.outputs)
    kept = [tensor for tensor in graph.tensors.values() if tensor.name in read]
    uses = Counter(tensor.source.name for tensor in kept if tensor.source)
    renamed = {}
    for tensor in kept:
        if tensor.source and uses[tensor.source.name] == 1:
            renamed[tensor.name] = tensor.source.name
            tensor.name = tensor.source.name
    graph.tensors = {tensor.name: tensor for tensor in kept}
    _rename_inputs(graph, renamed)


def _as(graph: Graph, tensor: Tensor, dtype: int) -> str:
    """The name of a tensor of the same numbers in another type, which is made once."""
    if tensor.dtype == dtype:
        return tensor.name
    base = tensor.source.name if tensor.source else tensor.name
    name = f"{base}.{NAMES[dtype]}"
    if name not in graph.tensors:
        data = tensor.data
        if tensor.source is None:
            values = np.frombuffer(data, held(NAMES[tensor.dtype]))
            data = cast(values, NAMES[tensor.dtype], NAMES[dtype]).tobytes()
        graph.tensors[name] = Tensor(name, dtype, tensor.shape, data, tensor.source)
    return name


def _cast_to(node: Node) -> int:
    """The type that a Cast casts to; 0 where it says none, and for all other nodes."""
    return int_of(node.attributes.get("to", b"")) if node.op == "Cast" else 0


def _cast(source: str, target: str, dtype: int) -> Node:
    return Node("Cast", [source], [target], target, {"to": int_attribute("to", dtype)})


def _rename_inputs(graph: Graph, names: Mapping[str, str]) -> None:
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]


def _rename(graph: Graph, name: str, new: str) -> None:
    """Give a value another name where it is made and wherever it is read."""
    _rename_inputs(graph, {name: new})
    for node in graph.nodes:
        node.outputs = [new if output == name else output for output in node.outputs]

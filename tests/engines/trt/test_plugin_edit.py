"""The plugin in the place of `Attention`: the same numbers, and no transpose that it makes idle."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from diffusion_rt.engines.onnx_file import read_onnx
from diffusion_rt.engines.protobuf import Refused
from diffusion_rt.engines.trt.onnx_graph import int_of, read_graph
from diffusion_rt.engines.trt.plugin_edit import NAMESPACE, to_plugin
from diffusion_rt.kernels.attention_plugin import scale_bits
from diffusion_rt.runtime.pipeline import SHIPPED
from support.plugin_model import plugins_of, to_standard

HEADS, SIZE = 2, 16
HALF = TensorProto.FLOAT16


def edited(model: Any) -> Any:
    content = model.SerializeToString()
    graph = read_graph(content, read_onnx(content, "model.onnx"))
    to_plugin(graph)
    return onnx.load_from_string(graph.content())


def run(model: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: list[NDArray[Any]] = session.run(None, feeds)
    return found


def model(
    *,
    turn_q: bool = True,
    turn_k: bool = True,
    turn_v: bool = True,
    turn_out: bool = True,
    read_turned: bool = False,
    dtype: int = HALF,
    heads: int | str = HEADS,
    size: int = SIZE,
    mask: bool = False,
    **attributes: Any,
) -> Any:
    """An attention with transposes around it, or none."""
    nodes, inputs, outputs, values = [], [], [], []
    by_head = ["batch", heads, "tokens", size]
    by_token = ["batch", "tokens", heads, size]
    for name, turn in (("q", turn_q), ("k", turn_k), ("v", turn_v)):
        inputs.append(helper.make_tensor_value_info(name, dtype, by_token if turn else by_head))
        if turn:
            nodes.append(helper.make_node("Transpose", [name], [f"{name}t"], perm=[0, 2, 1, 3]))
            values.append(helper.make_tensor_value_info(f"{name}t", dtype, by_head))
    names = [f"{n}t" if t else n for n, t in (("q", turn_q), ("k", turn_k), ("v", turn_v))]
    if mask:
        inputs.append(helper.make_tensor_value_info("mask", dtype, ["tokens", "tokens"]))
        names.append("mask")
    made = "attended" if turn_out else "out"
    nodes.append(helper.make_node("Attention", names, [made], name="attend", **attributes))
    if turn_out:
        nodes.append(helper.make_node("Transpose", [made], ["out"], perm=[0, 2, 1, 3]))
        values.append(helper.make_tensor_value_info(made, dtype, by_head))
    shape = by_token if turn_out else by_head
    outputs.append(helper.make_tensor_value_info("out", dtype, shape))
    if read_turned:
        nodes.append(helper.make_node("Neg", ["qt"], ["other"]))
        outputs.append(helper.make_tensor_value_info("other", dtype, by_head))
    graph = helper.make_graph(nodes, "attention", inputs, outputs, value_info=values)
    opset = [helper.make_opsetid("", 23)]
    return helper.make_model(graph, opset_imports=opset, ir_version=11)


@pytest.mark.parametrize(
    ("built", "query_by_head", "key_by_head", "turns"),
    [
        ({}, 0, 0, 0),
        ({"turn_k": False, "turn_v": False}, 0, 1, 0),  # cross attention: K and V come by head
        ({"turn_out": False}, 1, 0, 1),
        ({"turn_q": False}, 1, 0, 1),
        ({"turn_v": False}, 0, 1, 1),
        ({"read_turned": True}, 0, 0, 1),
    ],
)
@pytest.mark.parametrize("scale", [None, 0.37])
def test_transposes_that_only_serve_attention_go(
    built: dict[str, bool], query_by_head: int, key_by_head: int, turns: int, scale: float | None
) -> None:
    attributes: dict[str, Any] = {} if scale is None else {"scale": scale}
    before = model(**built, **attributes)
    after = edited(before)
    (node,) = plugins_of(after.graph)
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert given == {
        "plugin_namespace": b"diffusion_rt",
        "plugin_version": b"1",
        "heads": HEADS,
        "head_size": SIZE,
        "scale_bits": scale_bits(SIZE**-0.5 if scale is None else scale),
        "query_by_head": query_by_head,
        "key_by_head": key_by_head,
    }
    assert [n.op_type for n in after.graph.node].count("Transpose") == turns
    assert {o.domain: o.version for o in after.opset_import} == {"": 23, NAMESPACE: 1}
    to_standard(after)
    rng = np.random.default_rng(3)
    feeds = {}
    for each in before.graph.input:
        dims = each.type.tensor_type.shape.dim
        shape = [d.dim_value or {"batch": 2, "tokens": 5}[d.dim_param] for d in dims]
        feeds[each.name] = rng.normal(size=shape).astype(np.float16)
    for ours, theirs in zip(run(after, feeds), run(before, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_transpose_of_the_shipped_unets_attention_is_left() -> None:
    """Seven self attentions with four of them, seven cross attentions with two."""
    path = SHIPPED / "unet_step.float16.onnx"
    graph = read_graph(path.read_bytes(), read_onnx(path.read_bytes(), str(path)))
    turns = sum(node.op == "Transpose" for node in graph.nodes)
    to_plugin(graph)
    nodes = [node for node in graph.nodes if node.domain == NAMESPACE]
    assert len(nodes) == 14
    assert turns - sum(node.op == "Transpose" for node in graph.nodes) == 7 * 4 + 7 * 2
    assert [int_of(node.attributes["key_by_head"]) for node in nodes].count(1) == 7
    assert not any(int_of(node.attributes["query_by_head"]) for node in nodes)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"mask": True}, "a mask"),
        ({"is_causal": 1}, "is_causal"),
        ({"softcap": 2.0}, "softcap"),
        ({"dtype": TensorProto.FLOAT}, "float16"),
        ({"heads": "heads"}, "in numbers"),
        ({"size": 12}, "head_size=12"),
        ({"size": 256}, "heads of 256; up to 160"),
        ({"scale": -0.5}, "no finite number above 0"),
    ],
)
def test_what_the_kernel_does_not_compute_is_refused(built: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        edited(model(**built))

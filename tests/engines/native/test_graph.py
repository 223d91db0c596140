"""Graphs are unpacked as ONNX's own reader has them; what makes no sense is refused by name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.graph import read_graph
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.spec import GRAPHS
from support.model_folders import model_of

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
X, Y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy")


def plain(value: Any) -> Any:
    """An attribute as onnx has it, as we do."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_what_onnx_reads(name: str, precision: str) -> None:
    file = SHIPPED / f"{name}.{precision}.onnx"
    graph = read_graph(file.read_bytes(), file.name)
    truth = onnx.load(file, load_external_data=False).graph
    assert graph.inputs == tuple(value.name for value in truth.input)
    assert graph.outputs == tuple(value.name for value in truth.output)
    for node, wanted in zip(graph.nodes, truth.node, strict=True):
        assert (node.operator, node.name) == (wanted.op_type, wanted.name)
        assert (node.inputs, node.outputs) == (tuple(wanted.input), tuple(wanted.output))
        given = {a.name: plain(helper.get_attribute_value(a)) for a in wanted.attribute}
        assert dict(node.attributes) == given
    assert list(graph.constants) == [tensor.name for tensor in truth.initializer]
    for tensor in truth.initializer:
        found = graph.constants[tensor.name]
        assert found.shape == tuple(tensor.dims)
        if tensor.data_location == TensorProto.EXTERNAL:
            assert isinstance(found, ExternalTensor)
        else:
            wanted_array = numpy_helper.to_array(tensor)
            assert not isinstance(found, ExternalTensor)
            assert found.dtype == wanted_array.dtype
            assert np.array_equal(found, wanted_array)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0]),
        (TensorProto.FLOAT16, [1.5, -2.0]),
        (TensorProto.INT64, [1, -2]),
        (TensorProto.INT32, [7, -(2**31)]),
        (TensorProto.BOOL, [True, False]),
        (TensorProto.DOUBLE, [0.1, 1e300]),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_spelling(dtype: int, values: list[Any], raw: bool) -> None:
    array = np.array(values, helper.tensor_dtype_to_np_dtype(dtype))
    if raw:
        tensor = numpy_helper.from_array(array, "c")
    else:
        tensor = helper.make_tensor("c", dtype, [2], values)
    node = helper.make_node("Identity", ["x"], ["y"], value=tensor)
    content = model_of([node], [tensor], [X], [Y]).SerializeToString()
    if dtype == TensorProto.DOUBLE and not raw:
        with pytest.raises(BadInput, match='tensor "c"'):
            read_graph(content, "g")
        return
    graph = read_graph(content, "g")
    for found in (graph.constants["c"], graph.nodes[0].attributes["value"]):
        assert isinstance(found, np.ndarray)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        ([("Sigmoid", ["nowhere"], ["y"])], [Y], 'reads "nowhere", which nothing makes'),
        (
            [("Sigmoid", ["late"], ["y"]), ("Gelu", ["x"], ["late"])],
            [Y],
            'reads "late", which nothing makes',
        ),
        ([("Sigmoid", ["x"], ["y"]), ("Gelu", ["x"], ["y"])], [Y], 'makes "y" a second time'),
        ([("Sigmoid", ["x"], ["x"])], [X], 'makes "x" a second time'),
        ([("Sigmoid", ["x"], ["z"])], [Y], 'nothing makes the output "y"'),
    ],
)
def test_a_broken_graph_is_refused_by_name(
    nodes: list[tuple[str, list[str], list[str]]], outputs: list[Any], reason: str
) -> None:
    made = [helper.make_node(*node, name=f"n{i}") for i, node in enumerate(nodes)]
    content = model_of(made, [], [X], outputs).SerializeToString()
    with pytest.raises(BadInput, match=f"^g: .*{re.escape(reason)}.*; export the model again$"):
        read_graph(content, "g")


def test_a_damaged_file_is_refused() -> None:
    content = (SHIPPED / "unet_timestep.float32.onnx").read_bytes()
    for cut in range(1, len(content), 997):
        with pytest.raises(BadInput, match=r"^g: .*; export the model again$"):
            read_graph(content[:cut], "g")

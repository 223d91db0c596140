"""Group norms spelt otherwise for ONNX Runtime compute the same; all else stays to the byte."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from diffusion_rt.engines.onnx_file import read_onnx
from diffusion_rt.engines.ort.lowering import lower
from support.model_folders import model_of


def group_norm(
    channels: int, groups: int, rank: int, *, stored: str = "float32", **attributes: Any
) -> onnx.ModelProto:
    """y = GroupNormalization(x), its scale and bias stored as `stored` and cast."""
    draw = np.random.default_rng(channels)
    nodes, names = [], []
    initializers = [
        numpy_helper.from_array(draw.normal(size=channels).astype(stored), name)
        for name in ("scale", "bias")
    ]
    for tensor in initializers:
        names.append(tensor.name if stored == "float32" else f"{tensor.name}_cast")
        if stored != "float32":
            nodes.append(helper.make_node("Cast", [tensor.name], [names[-1]], to=1))
    nodes.append(
        helper.make_node(
            "GroupNormalization", ["x", *names], ["y"], num_groups=groups, **attributes
        )
    )
    names_of_sizes: list[str | int | None] = ["batch", channels, "height", "width"]
    shape = names_of_sizes[:rank]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    return model_of(nodes, initializers, [x], [y])


def run(content: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    found: NDArray[np.float32] = y
    return found


def reference(x: NDArray[np.float32], model: onnx.ModelProto, groups: int, epsilon: float) -> Any:
    """Group norm in float64."""
    scale, bias = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    grouped = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    by_channel = (-1, *[1] * (x.ndim - 2))
    return normal * scale.reshape(by_channel) + bias.reshape(by_channel)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 6),
    per_group=st.integers(1, 5),
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    stored=st.sampled_from(["float32", "float16"]),
    epsilon=st.sampled_from([1e-5, 1e-6, 0.1]),
    seed=st.integers(0, 99),
)
def test_a_lowered_group_norm_is_as_exact_as_the_whole(
    groups: int,
    per_group: int,
    batch: int,
    sizes: list[int],
    stored: str,
    epsilon: float,
    seed: int,
) -> None:
    model = group_norm(groups * per_group, groups, 2 + len(sizes), stored=stored, epsilon=epsilon)
    whole = model.SerializeToString()
    lowered = lower(whole)
    assert b"GroupNormalization" not in lowered
    onnx.checker.check_model(onnx.load_from_string(lowered))
    draw = np.random.default_rng(seed)
    x = draw.normal(1.0, 2.0, (batch, groups * per_group, *sizes)).astype(np.float32)
    exact = reference(x, model, groups, epsilon)
    error = np.abs(run(lowered, x) - exact).max()
    assert error <= max(2 * np.abs(run(whole, x) - exact).max(), 1e-5)


def test_the_default_epsilon_is_that_of_onnx() -> None:
    model = group_norm(4, 2, 4)
    x = np.random.default_rng(0).normal(size=(1, 4, 3, 3)).astype(np.float32) * 1e-3
    np.testing.assert_allclose(
        run(lower(model.SerializeToString()), x), reference(x, model, 2, 1e-5), atol=1e-5
    )


def test_a_constant_picture_normalises_to_the_bias() -> None:
    model = group_norm(4, 2, 4)
    y = run(lower(model.SerializeToString()), np.full((2, 4, 5, 5), 7, np.float32))
    bias = numpy_helper.to_array(model.graph.initializer[1])
    np.testing.assert_allclose(y, np.broadcast_to(bias.reshape(4, 1, 1), y.shape), atol=1e-5)


def test_many_share_their_constants() -> None:
    one = group_norm(8, 4, 4)
    nodes = list(one.graph.node)
    nodes[-1].output[0] = "y0"
    for i in range(5):
        node = helper.make_node(
            "GroupNormalization", [f"y{i}", "scale", "bias"], [f"y{i + 1}"], num_groups=4
        )
        nodes.append(node)
    nodes[-1].output[0] = "y"
    model = model_of(nodes, one.graph.initializer, one.graph.input, one.graph.output)
    lowered = onnx.load_from_string(lower(model.SerializeToString()))
    onnx.checker.check_model(lowered)
    assert len(lowered.graph.initializer) == 2 + 5  # ones, zeros and three shapes
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        run(lowered.SerializeToString(), x), run(model.SerializeToString(), x), atol=1e-5
    )


def test_what_has_no_group_norm_stays_to_the_byte() -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", cubic_coeff_a=-0.5)
    scales = numpy_helper.from_array(np.ones(4, np.float32), "s")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, None, 3])
    model = model_of([node], [scales], [x], [])
    model.doc_string, model.model_version = "GroupNormalization", 7
    model.graph.node[0].doc_string = "stands where a GroupNormalization stood"
    entry = model.metadata_props.add()
    entry.key, entry.value = "a", "b"
    content = model.SerializeToString()
    assert onnx.load_from_string(lower(content)) == model
    assert len(lower(content)) == len(content)


def _unknown_scale(node: onnx.NodeProto) -> None:
    node.input[1] = "x"


def _no_bias(node: onnx.NodeProto) -> None:
    del node.input[2]


def _no_groups(node: onnx.NodeProto) -> None:
    del node.attribute[:]


def _groups_of_another_type(node: onnx.NodeProto) -> None:
    node.attribute[0].CopyFrom(helper.make_attribute("num_groups", 2.0))


def _uneven_groups(node: onnx.NodeProto) -> None:
    node.attribute[0].i = 3


def _negative_groups(node: onnx.NodeProto) -> None:
    node.attribute[0].i = -2


@pytest.mark.parametrize(
    "change",
    [
        _unknown_scale,
        _no_bias,
        _no_groups,
        _groups_of_another_type,
        _uneven_groups,
        _negative_groups,
    ],
)
def test_what_is_not_understood_stays(change: Callable[[onnx.NodeProto], None]) -> None:
    model = group_norm(4, 2, 4)
    change(model.graph.node[0])
    assert lower(model.SerializeToString()) == model.SerializeToString()


def test_the_gate_takes_what_was_lowered() -> None:
    lowered = lower(group_norm(8, 4, 4, stored="float16").SerializeToString())
    assert read_onnx(lowered, "g").nodes == 2 + 9

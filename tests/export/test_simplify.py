"""Tidying keeps every value, every parameter and the signature."""

import numpy as np
import onnx_ir as ir
import pytest

from diffusion_rt.export.simplify import simplify
from support.onnx_text import evaluate, parsed


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


CASES = {
    "arithmetic that changes nothing": (
        """g (float[n,4] x) => (float[n,4] out)
        <float one = {1.0}, float zero = {0.0}>
        {
            a = Div(x, one)
            b = Mul(one, a)
            c = Add(zero, b)
            d = Sub(c, zero)
            out = Relu(d)
        }""",
        ["Relu"],
    ),
    "a division that changes everything": (
        """g (float[n,4] x) => (float[n,4] out)
        <float one = {1.0}>
        {
            a = Div(one, x)
            out = Sub(one, a)
        }""",
        ["Div", "Sub"],
    ),
    "one that broadcasts": (
        """g (float[n,1] x) => (float[n,4] out)
        <float[1,4] zeros = {0, 0, 0, 0}>
        {
            out = Add(x, zeros)
        }""",
        ["Add"],
    ),
    "shapes and types that are there already": (
        """g (float[n,4] x) => (float[n,4] out)
        <int64[2] target = {-1, 4}, float[n,4] a, float[n,4] b, float[n,4] c, float[n,4] d>
        {
            a = Reshape(x, target)
            b = Cast <to = 1> (a)
            c = Transpose <perm = [0, 1]> (b)
            size = Shape(x)
            d = Expand(c, size)
            out = Relu(d)
        }""",
        ["Relu"],
    ),
    "a sequence made and taken apart": (
        """g (float[n,4] x) => (float[n,2] out)
        <int64 two = {2}, int64 zero = {0}, int64 one = {1}>
        {
            parts = SplitToSequence <axis = 1> (x, two)
            a = SequenceAt(parts, zero)
            b = SequenceAt(parts, one)
            out = Mul(a, b)
        }""",
        ["Split", "Mul"],
    ),
    "two views in a row": (
        """g (float[n,4] x) => (float[n,4,1,1] out)
        <int64[1] two = {2}, int64[1] three = {3}>
        {
            a = Unsqueeze(x, two)
            b = Unsqueeze(a, three)
            out = Relu(b)
        }""",
        ["Unsqueeze", "Relu"],
    ),
}


@pytest.mark.parametrize(("text", "left"), CASES.values(), ids=CASES.keys())
def test_fewer_nodes_and_the_same_values(text: str, left: list[str]) -> None:
    model = parsed(text)
    x = model.graph.inputs[0]
    shape = [3 if not isinstance(size, int) else size for size in x.shape or ()]
    given = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    wanted = evaluate(model, given)
    simplify(model)
    assert operators(model) == left
    found = evaluate(model, given)
    np.testing.assert_array_equal(found["out"], wanted["out"])


def test_a_reshape_needs_no_sizes_where_one_number_says_it() -> None:
    model = parsed("""
        g (float[batch,tokens,12] x) => (float[batch,tokens,3,4] out)
        <int64[2] heads = {3, 4}>
        {
            sizes = Shape <start = 0, end = 2> (x)
            target = Concat <axis = 0> (sizes, heads)
            out = Reshape <allowzero = 1> (x, target)
        }""")
    given = {"x": np.arange(120, dtype=np.float32).reshape(2, 5, 12)}
    wanted = evaluate(model, given)["out"]
    simplify(model)
    assert operators(model) == ["Reshape"]
    target = model.graph[0].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [0, 0, 3, 4]
    np.testing.assert_array_equal(evaluate(model, given)["out"], wanted)


def test_a_reshape_of_two_unknown_sizes_asks_for_them() -> None:
    model = parsed("""
        g (float[batch,pixels,4] x, float[batch,height,width] y)
            => (float[batch,height,width,4] out)
        <int64[1] four = {4}>
        {
            sizes = Shape(y)
            target = Concat <axis = 0> (sizes, four)
            out = Reshape <allowzero = 1> (x, target)
        }""")
    given = {"x": np.ones((2, 6, 4), np.float32), "y": np.ones((2, 3, 2), np.float32)}
    simplify(model)
    assert "Shape" in operators(model)
    assert evaluate(model, given)["out"].shape == (2, 3, 2, 4)


def test_parameters_are_neither_folded_nor_merged() -> None:
    model = parsed(
        """
        g (float[n,2] x, float[2,2] first.weight, float[2,2] second.weight) => (float[n,2] out)
        <float two = {2.0}, float three = {3.0}>
        {
            six = Mul(two, three)
            a = Transpose <perm = [1, 0]> (first.weight)
            b = Transpose <perm = [1, 0]> (second.weight)
            scaled = Mul(a, six)
            c = MatMul(x, scaled)
            out = MatMul(c, b)
        }""".replace("first.weight", "first").replace("second.weight", "second")
    )
    same = np.eye(2, dtype=np.float32)
    given = {"x": np.ones((3, 2), np.float32), "first": same, "second": same}
    simplify(model)
    assert operators(model) == ["Transpose", "Transpose", "Mul", "MatMul", "MatMul"]
    assert [value.name for value in model.graph.inputs] == ["x", "first", "second"]
    assert [v.const_value.numpy().item() for v in model.graph.initializers.values()] == [6.0]  # type: ignore[union-attr]
    np.testing.assert_array_equal(evaluate(model, given)["out"], 6 * given["x"])


def test_equal_work_is_done_once() -> None:
    model = parsed("""
        g (float[n] x) => (float[n] out)
        {
            a = Sigmoid(x)
            b = Sigmoid(x)
            out = Add(a, b)
        }""")
    simplify(model)
    assert operators(model) == ["Sigmoid", "Add"]

"""A graph cut by dependency: the parts, put together again, are the whole."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.export.split import split
from support.onnx_text import Arrays, evaluate, parsed


def together(parts: dict[str, ir.Model], given: Arrays) -> Arrays:
    known = dict(given)
    for model in parts.values():
        known |= evaluate(model, known)
    return known


def names(values: Any) -> list[str]:
    return [value.name for value in values]


def crossed(value: ir.Value) -> str:
    return f"{value.name}.crossed"


def test_each_node_goes_to_the_first_part_that_can_compute_it() -> None:
    whole = parsed("""
        whole (float[batch,4] early, float[batch,4] late, float[4,4] weight) => (float[batch,4] out)
        {
            turned = Transpose <perm = [1, 0]> (weight)
            a = MatMul(early, turned)
            b = Relu(a)
            c = Add(late, b)
            out = MatMul(c, turned)
        }""")
    draw = np.random.default_rng(0)
    given = {n: draw.standard_normal((3, 4)).astype(np.float32) for n in ("early", "late")}
    given["weight"] = draw.standard_normal((4, 4)).astype(np.float32)
    wanted = evaluate(whole, given)["out"]
    parts = split(whole, {"first": ["early"], "second": ["late"]}, crossed)
    first, second = parts["first"].graph, parts["second"].graph
    assert names(first.inputs) == ["early", "weight"]
    assert names(first.outputs) == ["b.crossed"]
    assert names(second.inputs) == ["late", "b.crossed", "weight"]
    assert [node.op_type for node in first] == ["Transpose", "MatMul", "Relu"]
    assert [node.op_type for node in second] == ["Transpose", "Add", "MatMul"]
    np.testing.assert_array_equal(together(parts, given)["out"], wanted)


def test_a_view_stays_with_its_reader() -> None:
    whole = parsed("""
        whole (float[batch,4] early, float[batch,4,1,1] late) => (float[batch,4,1,1] out)
        <int64[2] axes = {2, 3}>
        {
            a = Relu(early)
            b = Unsqueeze(a, axes)
            out = Add(late, b)
        }""")
    parts = split(whole, {"first": ["early"], "second": ["late"]}, crossed)
    assert names(parts["first"].graph.outputs) == ["a.crossed"]
    assert [node.op_type for node in parts["second"].graph] == ["Unsqueeze", "Add"]
    assert list(parts["second"].graph.initializers) == ["axes"]


def test_constants_stand_in_the_order_of_their_names() -> None:
    numbers = range(20)
    constants = ", ".join(f"float c{n:02} = {{{n}.0}}" for n in numbers)
    sums = "\n".join(f"s{n} = Add({f's{n - 1}' if n else 'late'}, c{n:02})" for n in numbers)
    whole = parsed(f"""
        whole (float[n] early, float[n] late) => (float[n] out, float[n] kept)
        <{constants}>
        {{
            kept = Relu(early)
            {sums}
            out = Add(s19, kept)
        }}""")
    parts = split(whole, {"first": ["early"], "second": ["late"]}, crossed)
    assert list(parts["second"].graph.initializers) == [f"c{n:02}" for n in numbers]


def test_sizes_are_asked_of_an_input_that_the_part_has() -> None:
    whole = parsed("""
        whole (float[batch,tokens,6] early, float[batch,height] late)
            => (float[batch,height] out, float[batch,tokens,6] kept)
        <int64[1] one = {1}>
        {
            kept = Relu(early)
            batch_size = Shape <start = 0, end = 1> (early)
            shape = Concat <axis = 0> (batch_size, one)
            ones = ConstantOfShape <value = float[1] {2.0}> (shape)
            out = Mul(late, ones)
        }""")
    parts = split(whole, {"first": ["early"], "second": ["late"]}, crossed)
    assert names(parts["second"].graph.inputs) == ["late"]
    late = np.ones((5, 7), np.float32)
    found = together(parts, {"early": np.zeros((5, 2, 6), np.float32), "late": late})
    np.testing.assert_array_equal(found["out"], 2 * late)


def test_several_sizes_with_constants_among_them() -> None:
    whole = parsed("""
        whole (float[batch,3,width] early, float[batch,width] late)
            => (int64[3] out, float[batch,3,width] kept)
        {
            kept = Relu(early)
            sizes = Shape(early)
            late_sizes = Shape <start = 0, end = 1> (late)
            summed = ReduceSum <keepdims = 0> (late)
            counted = Cast <to = 7> (summed)
            nothing = Sub(counted, counted)
            more = Add(sizes, nothing)
            out = Mul(more, late_sizes)
        }""")
    parts = split(whole, {"first": ["early"], "second": ["late"]}, crossed)
    graph = parts["second"].graph
    assert names(graph.inputs) == ["late"]
    found = evaluate(parts["second"], {"late": np.ones((2, 9), np.float32)})
    assert found["out"].tolist() == [4, 6, 18]


def test_a_size_that_no_input_has_is_an_error() -> None:
    whole = parsed("""
        whole (float[tokens] early, float[batch] late) => (float[batch] out, float[tokens] kept)
        {
            kept = Relu(early)
            count = Shape(early)
            number = Cast <to = 1> (count)
            out = Mul(late, number)
        }""")
    with pytest.raises(ValueError, match="no input of the part has the size tokens"):
        split(whole, {"first": ["early"], "second": ["late"]}, crossed)


def test_a_part_that_has_nothing_to_do_is_an_error() -> None:
    whole = parsed("whole (float[n] early, float[n] late) => (float[n] out) { out = Relu(late) }")
    with pytest.raises(ValueError, match="first gives nothing"):
        split(whole, {"first": ["early"], "second": ["late"]}, crossed)


def test_two_crossing_values_of_one_name_are_an_error() -> None:
    whole = parsed("""
        whole (float[n] early, float[n] late) => (float[n] out)
        {
            a = Relu(early)
            b = Neg(early)
            c = Add(late, a)
            out = Add(c, b)
        }""")
    with pytest.raises(ValueError, match="same name"):
        split(whole, {"first": ["early"], "second": ["late"]}, lambda value: "same")


INPUTS = ("a", "b", "c", "d")


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Add", "Mul", "Sub"]), st.integers(0, 99), st.integers(0, 99)),
        min_size=1,
        max_size=25,
    ),
    homes=st.permutations([0, 0, 1, 2]),
)
def test_parts_of_any_graph_put_together_are_the_whole(
    steps: list[tuple[str, int, int]], homes: list[int]
) -> None:
    lines, known = [], [*INPUTS, "weight"]
    for number, (operator, left, right) in enumerate(steps):
        operands = f"{known[left % len(known)]}, {known[-1 - right % len(known)]}"
        lines.append(f"v{number} = {operator}({operands})")
        known.append(f"v{number}")
    # Each part gives something, and the last value of all is read.
    lines += [f"out_{name} = Max({name}, {known[-1]})" for name in INPUTS]
    lines += [f"part_{name} = Neg({name})" for name in INPUTS]
    results = ", ".join(f"float[n,2] {side}_{name}" for side in ("out", "part") for name in INPUTS)
    signature = ", ".join(f"float[n,2] {name}" for name in (*INPUTS, "weight"))
    body = "\n".join(lines)
    whole = parsed(f"whole ({signature}) => ({results}) {{\n{body}\n}}")
    draw = np.random.default_rng(len(steps))
    given = {n: draw.uniform(-1, 1, (3, 2)).astype(np.float32) for n in (*INPUTS, "weight")}
    wanted = evaluate(whole, given)
    reads = {
        str(part): [n for n, home in zip(INPUTS, homes, strict=True) if home == part]
        for part in range(3)
    }
    parts = split(whole, reads, crossed)
    for index, (part, model) in enumerate(parts.items()):
        allowed = {n for i in range(index + 1) for n in reads[str(i)]}
        given_names = {name for name in names(model.graph.inputs) if name in INPUTS}
        assert given_names <= allowed
        assert set(reads[part]) <= given_names
    found = together(parts, given)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)

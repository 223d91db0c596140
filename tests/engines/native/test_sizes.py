"""Shapes, and arithmetic on shapes, are those that ONNX's reference computes."""

import re

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.graph import read_graph
from diffusion_rt.engines.native.sizes import MOST_KNOWN, Sized, sizes_of
from support.onnx_text import evaluate, parsed


def found(text: str, **shapes: tuple[int, ...]) -> dict[str, Sized]:
    graph = read_graph(ir.to_proto(parsed(text)).SerializeToString(), "g")
    return sizes_of(graph, shapes, "g")


def constant(name: str, values: list[int]) -> str:
    return (
        f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()\n"
    )


def agrees(text: str, shape: tuple[int, ...]) -> None:
    """All outputs of a graph of one input x."""
    truth = evaluate(parsed(text), {"x": np.zeros(shape, np.float32)})
    sizes = found(text, x=shape)
    for name, values in truth.items():
        array = sizes[name].array
        assert sizes[name].shape == np.shape(values), name
        if np.issubdtype(np.asarray(values).dtype, np.integer):
            assert array is not None, name
            assert np.array_equal(array, values), name


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    numbers=st.lists(st.integers(-9, 9).filter(bool), min_size=2, max_size=2),
)
def test_arithmetic_on_sizes(height: int, width: int, numbers: list[int]) -> None:
    text = f"""g (float[1, 4, h, w] x) => (int64[2] a, int64[2] b, int64[2] c, int64[3] d, int64 e,
        int64[n] f, int64[2, 1] i) {{
        s = Shape <start = 2> (x)
        {constant("k", numbers)} {constant("zero", [0])} {constant("one", [1])}
        {constant("minus", [-1])} {constant("end", [9223372036854775807])}
        t = Sub (s, k)
        a = Div (t, k)
        b = Mul (a, k)
        c = Add (b, s)
        h = Slice (s, zero, one)
        d = Concat <axis = 0> (h, s)
        last = Slice (s, minus, end, zero, one)
        e = Squeeze (last)
        from = Constant <value = int64 {{0}}> ()
        step = Constant <value = int64 {{3}}> ()
        f = Range (from, e, step)
        i = Unsqueeze (s, one)
    }}"""
    agrees(text, (1, 4, height, width))


@pytest.mark.parametrize(
    ("shape", "target", "allow"),
    [
        ((2, 3, 4), [0, -1], 0),
        ((2, 3, 4), [0, 0, 2, 2], 0),
        ((2, 3, 4), [-1], 0),
        ((2, 3, 4), [4, 6], 1),
        ((2, 3, 4), [1, 2, 3, 4, 1], 0),
    ],
)
def test_reshapes(shape: tuple[int, ...], target: list[int], allow: int) -> None:
    text = f"""g (float[a, b, c] x) => (float[p] y) {{ {constant("t", target)}
        y = Reshape <allowzero = {allow}> (x, t) }}"""
    agrees(text, shape)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    stride=st.integers(1, 3),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_convolutions(size: tuple[int, int], stride: int, pads: list[int]) -> None:
    text = f"""g (float[1, 2, h, w] x, float[3, 2, 3, 3] f) => (float[1, 3, p, q] y) {{
        y = Conv <pads = {pads}, strides = [{stride}, {stride}]> (x, f) }}"""
    arrays = {"x": np.zeros((1, 2, *size), np.float32), "f": np.zeros((3, 2, 3, 3), np.float32)}
    truth = evaluate(parsed(text), arrays)["y"]
    assert found(text, x=(1, 2, *size), f=(3, 2, 3, 3))["y"].shape == truth.shape


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (constant("t", [0, 0, 0, 0, 0]) + "y = Reshape (x, t)", "a 0 with no size to copy"),
        (constant("t", [-1, -1]) + "y = Reshape (x, t)", "a shape [-1, -1]"),
        (constant("t", [-1, 7]) + "y = Reshape (x, t)", "a shape [-1, 7]"),
        (constant("t", [7]) + "y = Squeeze (x, t)", "axis 7 of 4 dimensions"),
        (constant("t", [1]) + "y = Squeeze (x, t)", "a dimension that is not 1"),
        (constant("t", [1, 1]) + "y = Unsqueeze (x, t)", "an axis twice"),
        (constant("t", [2]) + constant("e", [1]) + "y = Slice (x, t, e)", "it would make [0, 2,"),
        ("y = Transpose <perm = [0, 1, 1, 2]> (x)", "the order (0, 1, 1, 2)"),
        ("y, z = Split <axis = 1, num_outputs = 3> (x)", "3 parts of 2"),
        ("y = Concat <axis = 1> (x, f)", "other sizes beside those that are joined"),
        ("y = Conv <strides = [0, 1]> (x, f)", "division or modulo by zero"),
        ("y = Conv <pads = [-1, 0, 0, 0]> (x, f)", "no pixel left"),
        ("y = Conv <group = 2> (x, f)", "channels that do not match"),
        ("y = MatMul (x, f)", "sizes that do not match"),
        ("y = Attention (x, x, f)", "sizes that do not match"),
        ("s = Shape (x)\n y = Cast <to = 8> (s)", "a cast to type 8"),
        ("s = Cast <to = 7> (x)\n y = Reshape (x, s)", "a size that depends on what is drawn"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_node(text: str, reason: str) -> None:
    whole = f"g (float[1, 2, h, w] x, float[3, 2, 3, 3] f) => (float[p] y) {{ {text} }}"
    with pytest.raises(
        BadInput, match=f"^g: node .*, operator .*{re.escape(reason)}.*--engine ort"
    ):
        found(whole, x=(1, 2, 5, 6), f=(3, 2, 3, 3))


def test_constants_do_not_grow_without_bound() -> None:
    """Each line doubles the array: what is too large is only a shape, then refused."""
    lines = "".join(f"s{i + 1} = Concat <axis = 0> (s{i}, s{i})\n" for i in range(45))
    text = f"g (float[2] x) => (int64[n] s45) {{ s0 = Shape (x)\n {lines} }}"
    with pytest.raises(BadInput, match="it would make"):
        found(text, x=(2,))
    few = "".join(f"s{i + 1} = Concat <axis = 0> (s{i}, s{i})\n" for i in range(25))
    sizes = found(f"g (float[2] x) => (int64[n] s25) {{ s0 = Shape (x)\n {few} }}", x=(2,))
    assert sizes["s25"].shape == (1 << 25,)
    assert sizes["s25"].array is None
    known = [value.array.size for value in sizes.values() if value.array is not None]
    assert max(known) <= MOST_KNOWN

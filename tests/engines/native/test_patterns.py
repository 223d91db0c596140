"""Each pattern, and what only looks like it, computes what ONNX's reference does; or is refused."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.plan import (
    Convolution,
    Copy,
    Elementwise,
    Embedding,
    GroupNorm,
    Plan,
    Product,
    SelectRow,
)
from support.lowered import check, lowered, run_lowered

DRAW = np.random.default_rng(0)
SIZES = {"b": 2, "t": 5, "h": 3, "w": 5}


def real(*shape: int) -> NDArray[np.float32]:
    return DRAW.standard_normal(shape).astype(np.float32)


def kinds(plan: Plan) -> list[str]:
    return [type(operation).__name__ for operation in plan.operations]


def linear(extra: str, outputs: str = "float[b, t, 16] y", inputs: str = "") -> str:
    """x · wᵀ, then the lines of `extra`."""
    return (
        f"g (float[b, t, 8] x, float[16, 8] w, float[16] bias, float[b, t, 16] r{inputs})"
        f" => ({outputs}) {{ v = Transpose <perm = [1, 0]> (w)\n m = MatMul (x, v)\n {extra} }}"
    )


PARAMETERS = {"w": real(16, 8), "bias": real(16)}
INPUTS = {"x": real(2, 5, 8), "r": real(2, 5, 16)}


@pytest.mark.parametrize(
    ("extra", "functions"),
    [
        ("y = Identity (m)", []),
        ("y = Add (m, bias)", []),
        ("y = Add (bias, m)", []),
        ("a = Add (m, bias)\n y = Add (r, a)", []),
        ("a = Add (m, bias)\n y = Gelu (a)", []),
        ("a = Add (m, bias)\n s = Sigmoid (a)\n y = Mul (s, a)", []),
        ("s = Sigmoid (m)\n g = Mul (m, s)\n y = Add (g, r)", []),
        # What only looks like it.
        ("a = Add (m, m)\n y = Add (a, r)", ["add", "add"]),
        ("a = Add (m, r)\n g = Gelu (a)\n y = Add (g, r)", ["gelu", "add"]),
        ("s = Sigmoid (m)\n y = Mul (s, r)", ["sigmoid", "multiply"]),
        ("a = Add (m, m)\n s = Sigmoid (a)\n y = Mul (s, s)", ["add", "sigmoid", "multiply"]),
        ("s = Sigmoid (m)\n g = Mul (m, s)\n y = Add (g, m)", ["sigmoid", "multiply", "add"]),
        ("s = Sigmoid (m)\n g = Mul (m, s)\n y = Mul (g, s)", ["sigmoid", "multiply", "multiply"]),
    ],
)
def test_what_follows_a_product(extra: str, functions: list[str]) -> None:
    plan = check(linear(extra), SIZES, PARAMETERS, INPUTS)
    (product, *rest) = plan.operations
    assert isinstance(product, Product)
    assert [o.function for o in rest if isinstance(o, Elementwise)] == functions
    assert len(rest) == len(functions)


def test_a_residual_behind_views() -> None:
    """As after a transformer: rows become a picture again, then the picture is added."""
    text = """g (float[b, 8, h, w] x, float[16, 8] m, float[b, 16, h, w] r) =>
        (float[b, 16, h, w] y) {
        turned = Transpose <perm = [0, 2, 3, 1]> (x)
        shape = Constant <value = int64[3] {0, -1, 8}> ()
        flat = Reshape (turned, shape)
        v = Transpose <perm = [1, 0]> (m)
        product = MatMul (flat, v)
        size = Shape <start = 2, end = 4> (x)
        one = Shape <start = 0, end = 1> (x)
        sixteen = Constant <value = int64[1] {16}> ()
        whole = Concat <axis = 0> (one, size, sixteen)
        picture = Reshape (product, whole)
        back = Transpose <perm = [0, 3, 1, 2]> (picture)
        y = Add (back, r)
    }"""
    plan = check(text, SIZES, {"m": real(16, 8)}, {"x": real(2, 8, 3, 5), "r": real(2, 16, 3, 5)})
    products = [o for o in plan.operations if isinstance(o, Product)]
    assert len(products) == 1
    assert products[0].epilogue.residual is not None


@pytest.mark.parametrize("transposed", [True, False])
def test_weights_stored_either_way(transposed: bool) -> None:
    shape = "float[16, 8]" if transposed else "float[8, 16]"
    text = f"""g (float[b, 8] x, {shape} w, float[16] c) => (float[b, 16] y) {{
        m = Gemm <transB = {int(transposed)}> (x, w, c)
        s = Sigmoid (m)
        y = Mul (m, s) }}"""
    weight = real(16, 8) if transposed else real(8, 16)
    plan = check(text, SIZES, {"w": weight, "c": real(16)}, {"x": real(2, 8)})
    assert kinds(plan) == ["Product"]
    assert plan.weights["w"].layout == ("rows" if transposed else "transposed")


def test_products_of_one_tensor_become_one_and_others_stay() -> None:
    text = """g (float[b, t, 8] x, float[16, 8] p, float[24, 8] q, float[16, 8] s) =>
        (float[b, t, 16] y, float[b, t, 24] z, float[b, t, 16] u) {
        pt = Transpose <perm = [1, 0]> (p)
        qt = Transpose <perm = [1, 0]> (q)
        st = Transpose <perm = [1, 0]> (s)
        a = MatMul (x, pt)
        c = MatMul (x, qt)
        e = MatMul (x, st)
        y = Sigmoid (a)
        z = Sigmoid (c)
        u = Gelu (e) }"""
    parameters = {"p": real(16, 8), "q": real(24, 8), "s": real(16, 8)}
    plan = check(text, SIZES, parameters, {"x": real(2, 5, 8)})
    merged, single = (o for o in plan.operations if isinstance(o, Product))
    assert (merged.columns, single.columns) == (40, 16)
    assert [s.name for s in plan.weights[merged.weight].sources] == ["p", "q"]
    assert single.epilogue.activation == "gelu"


@settings(max_examples=20, deadline=None)
@given(
    width=st.sampled_from([8, 16, 24]),
    swapped=st.booleans(),
    other=st.booleans(),
    odd=st.booleans(),
)
def test_geglu(width: int, swapped: bool, other: bool, odd: bool) -> None:
    """One product where values come first and nothing else reads a half; else plain functions."""
    half = width + 4 if odd else width
    halves = ("p", "q")[:: -1 if swapped else 1]
    text = f"""g (float[b, t, 8] x, float[{2 * half}, 8] w, float[{2 * half}] c) =>
        (float[b, t, {half}] y, float[b, t, {half}] z) {{
        v = Transpose <perm = [1, 0]> (w)
        m = MatMul (x, v)
        a = Add (m, c)
        p, q = Split <axis = 2, num_outputs = 2> (a)
        g = Gelu ({halves[1]})
        y = Mul ({halves[0]}, g)
        z = Sigmoid ({"q" if other else "y"}) }}"""
    parameters = {"w": real(2 * half, 8), "c": real(2 * half)}
    plan = check(text, {"b": 2, "t": 5}, parameters, {"x": real(2, 5, 8)})
    (product,) = (o for o in plan.operations if isinstance(o, Product))
    fused = not swapped and not other and not odd
    assert (product.epilogue.activation == "geglu") == fused


def picture(extra: str, outputs: str, inputs: str = "") -> str:
    return (
        f"g (float[b, 8, h, w] x, float[16, 8, 3, 3] f, float[16] c{inputs}) => ({outputs}) "
        f"{{ m = Conv <pads = [1, 1, 1, 1]> (x, f, c)\n {extra} }}"
    )


FILTERS = {"f": real(16, 8, 3, 3), "c": real(16)}


def test_a_timestep_and_a_residual_after_a_convolution() -> None:
    text = picture(
        """axes = Constant <value = int64[2] {2, 3}> ()
        p = Unsqueeze (e, axes)
        a = Add (m, p)
        y = Add (r, a)""",
        "float[b, 16, h, w] y",
        ", float[b, 16] e, float[b, 16, h, w] r",
    )
    inputs = {"x": real(2, 8, 3, 5), "e": real(2, 16), "r": real(2, 16, 3, 5)}
    plan = check(text, SIZES, FILTERS, inputs)
    (convolution,) = (o for o in plan.operations if isinstance(o, Convolution))
    assert convolution.epilogue.vector is not None
    assert convolution.epilogue.residual is not None


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    short=st.booleans(),
    images=st.integers(1, 3),
)
def test_enlarging_is_folded_into_the_convolution(
    height: int, width: int, short: bool, images: int
) -> None:
    tall, wide = (2 * n - (short and n > 1) for n in (height, width))
    text = f"""g (float[b, 8, h, w] x, float[16, 8, 3, 3] f, float[16] c) =>
        (float[b, 16, {tall}, {wide}] y) {{
        head = Shape <start = 0, end = 2> (x)
        tail = Constant <value = int64[2] {{{tall}, {wide}}}> ()
        size = Concat <axis = 0> (head, tail)
        u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
            nearest_mode = "floor"> (x, , , size)
        y = Conv <pads = [1, 1, 1, 1]> (u, f, c) }}"""
    sizes = {"b": images, "h": height, "w": width}
    plan = check(text, sizes, FILTERS, {"x": real(images, 8, height, width)})
    (convolution,) = (o for o in plan.operations if isinstance(o, Convolution))
    assert convolution.upsampled == (tall, wide)
    twice = (tall, wide) == (2 * height, 2 * width)
    assert plan.weights[convolution.weight].layout == ("doubled" if twice else "filters")
    assert {weight.layout for weight in plan.weights.values()} == {"rows", "filters", "doubled"}
    assert plan.flops == 2 * images * tall * wide * 16 * 8 * 9
    assert convolution.flops_done == (plan.flops * 4 // 9 if twice else plan.flops)


@pytest.mark.parametrize(("side", "pads"), [(1, 0), (3, 0), (3, 2)])
def test_an_enlarged_picture_under_other_filters_stays_whole(side: int, pads: int) -> None:
    tall = 6 + 2 * pads - side + 1
    text = f"""g (float[b, 8, h, w] x, float[16, 8, {side}, {side}] f) =>
        (float[b, 16, {tall}, {tall}] y) {{
        scales = Constant <value = float[4] {{1.0, 1.0, 2.0, 2.0}}> ()
        u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
            nearest_mode = "floor"> (x, , scales)
        y = Conv <pads = [{pads}, {pads}, {pads}, {pads}]> (u, f) }}"""
    filters = {"f": real(16, 8, side, side)}
    plan = check(text, {"b": 2, "h": 3, "w": 3}, filters, {"x": real(2, 8, 3, 3)})
    assert {weight.layout for weight in plan.weights.values()} == {"filters"}


def test_padding_at_two_edges_is_folded_into_the_convolution() -> None:
    text = """g (float[b, 8, h, w] x, float[16, 8, 3, 3] f, float[16] c) => (float[b, 16, p, q] y) {
        pads = Constant <value = int64[8] {0, 0, 0, 0, 0, 0, 1, 1}> ()
        zero = Constant <value = float {0.0}> ()
        u = Pad (x, pads, zero)
        y = Conv <strides = [2, 2]> (u, f, c) }"""
    sizes = {"b": 2, "h": 6, "w": 4, "p": 3, "q": 2}
    plan = check(text, sizes, FILTERS, {"x": real(2, 8, 6, 4)})
    (convolution,) = (o for o in plan.operations if isinstance(o, Convolution))
    assert convolution.padding == (0, 0, 1, 1)


def test_channels_are_filled_up_with_zeros_and_filling_is_never_read() -> None:
    """Three channels in, five between, three out, the arena poisoned."""
    text = """g (float[b, 3, h, w] x, float[5, 3, 1, 1] f, float[5] c, float[3, 5, 3, 3] k) =>
        (float[b, 3, h, w] y) {
        m = Conv (x, f, c)
        y = Conv <pads = [1, 1, 1, 1]> (m, k) }"""
    parameters = {"f": real(5, 3, 1, 1), "c": real(5), "k": real(3, 5, 3, 3)}
    plan = check(text, SIZES, parameters, {"x": real(2, 3, 3, 5)})
    convolutions = [o for o in plan.operations if isinstance(o, Convolution)]
    assert [plan.weights[o.weight].shape for o in convolutions] == [(8, 1, 1, 8), (8, 3, 3, 8)]
    assert plan.flops == 2 * 2 * 15 * (5 * 3 + 3 * 5 * 9)


def test_two_pictures_side_by_side() -> None:
    """Read by a norm and a shortcut as they lie; written as one where something else reads them."""
    text = """g (float[b, 8, h, w] x, float[b, 16, h, w] z, float[24] n, float[24] o,
        float[16, 24, 1, 1] f, float[16] c, float[8, 8, 3, 3] k) =>
        (float[b, 24, h, w] y, float[b, 16, h, w] s) {
        a = Conv <pads = [1, 1, 1, 1]> (x, k)
        both = Concat <axis = 1> (a, z)
        y = GroupNormalization <num_groups = 3, epsilon = 0.01> (both, n, o)
        s = Conv (both, f, c) }"""
    parameters = {"n": real(24), "o": real(24), "f": real(16, 24, 1, 1), "c": real(16)}
    parameters["k"] = real(8, 8, 3, 3)
    inputs = {"x": real(2, 8, 3, 5), "z": real(2, 16, 3, 5)}
    plan = check(text, SIZES, parameters, inputs)
    norm = next(o for o in plan.operations if isinstance(o, GroupNorm))
    shortcut = next(o for o in plan.operations if isinstance(o, Product))
    assert len(norm.sources) == len(shortcut.sources) == 2
    other = text.replace("s = Conv (both, f, c)", "s0 = Conv (both, f, c)\n s = Sigmoid (both)")
    other = other.replace("float[b, 16, h, w] s)", "float[b, 24, h, w] s)")
    plan = check(other, SIZES, parameters, inputs)
    norm = next(o for o in plan.operations if isinstance(o, GroupNorm))
    assert len(norm.sources) == 1


def test_three_parts_are_written_in_their_places() -> None:
    text = """g (float[b, 8] x, float[b, 4] z, float[16, 8] w) => (float[b, 28] y) {
        v = Transpose <perm = [1, 0]> (w)
        m = MatMul (x, v)
        s = Sigmoid (x)
        y = Concat <axis = 1> (m, z, s) }"""
    plan = check(text, SIZES, {"w": real(16, 8)}, {"x": real(2, 8), "z": real(2, 4)})
    assert kinds(plan) == ["Product", "Elementwise", "Copy"]
    assert {o.output.buffer for o in plan.operations} == {"y"}


def test_one_part_twice_and_an_input_as_output() -> None:
    text = """g (float[b, 8] x) => (float[b, 16] y, float[b, 8] z, float[b, 8] s) {
        s = Sigmoid (x)
        y = Concat <axis = 1> (s, s)
        z = Identity (x) }"""
    check(text, SIZES, {}, {"x": real(2, 8)})


@settings(max_examples=25, deadline=None)
@given(
    left=st.sampled_from([(2, 3, 4), (2, 1, 4), (1, 1, 1), (4,), (3, 1)]),
    right=st.sampled_from([(2, 3, 4), (3, 4), (1,)]),
    operator=st.sampled_from(["Add", "Mul"]),
)
def test_functions_of_two_repeat_as_numpy(
    left: tuple[int, ...], right: tuple[int, ...], operator: str
) -> None:
    shapes = [", ".join(map(str, shape)) for shape in (left, right)]
    out = ", ".join(map(str, np.broadcast_shapes(left, right)))
    signature = f"g (float[{shapes[0]}] x, float[{shapes[1]}] z) => (float[{out}] y)"
    text = f"{signature} {{ y = {operator} (x, z) }}"
    check(text, {}, {}, {"x": real(*left), "z": real(*right)})


def test_a_number_a_clip_and_a_sigmoid() -> None:
    text = """g (float[b, 8] x) => (float[b, 8] y) {
        two = Constant <value = float {2.5}> ()
        low = Constant <value = float {-1.0}> ()
        high = Constant <value = float {0.75}> ()
        a = Mul (x, two)
        c = Clip (a, low, high)
        y = Sigmoid (c) }"""
    plan = check(text, SIZES, {}, {"x": real(2, 8)})
    assert [o.function for o in plan.operations if isinstance(o, Elementwise)] == [
        "multiply",
        "clip",
        "sigmoid",
    ]


POOLED = """g (int64[b, t] ids, float[50, 8] table, float[9, 8] places) => (float[b, 8] y) {
    length = Shape <start = 1, end = 2> (ids)
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {-1}> ()
    all = Constant <value = int64[1, 9] {0, 1, 2, 3, 4, 5, 6, 7, 8}> ()
    first = Slice (all, zero, length, one, one)
    token = Gather (table, ids)
    place = Gather (places, first)
    x = Add (token, place)
    images = Shape <start = 0, end = 1> (ids)
    count = Squeeze (images)
    from = Constant <value = int64 {0}> ()
    step = Constant <value = int64 {1}> ()
    range = Range (from, count, step)
    narrow = Cast <to = 6> (ids)
    FIND
    pairs_a = Unsqueeze (range, last)
    pairs_b = Unsqueeze (found, last)
    pairs = Concat <axis = -1> (pairs_a, pairs_b)
    y = GatherND (x, pairs)
}"""
BY_TOKEN = """end = Constant <value = int32 {7}> ()
    match = Equal (narrow, end)
    number = Cast <to = 6> (match)
    found = ArgMax <axis = -1, keepdims = 0> (number)"""
BY_LARGEST = "found = ArgMax <axis = -1, keepdims = 0> (narrow)"


@pytest.mark.parametrize(("find", "token"), [(BY_TOKEN, 7), (BY_LARGEST, None)])
def test_the_row_of_the_end_token(find: str, token: int | None) -> None:
    ids = np.array([[3, 7, 49, 7, 0], [49, 49, 1, 2, 7], [1, 2, 3, 4, 5]])
    parameters = {"table": real(50, 8), "places": real(9, 8)}
    text = POOLED.replace("FIND", find)
    plan = check(text, {"b": 3, "t": 5}, parameters, {"ids": ids})
    embedding, select = plan.operations
    assert isinstance(embedding, Embedding)
    assert isinstance(select, SelectRow)
    assert select.token == token


def test_a_token_outside_the_table_is_refused() -> None:
    parameters = {"table": real(50, 8), "places": real(9, 8)}
    plan = lowered(POOLED.replace("FIND", BY_LARGEST), {"b": 1, "t": 2}, parameters)
    for wrong in (50, -1):
        with pytest.raises(BadInput, match=f"table: token {wrong}, the table has 50"):
            run_lowered(plan, parameters, {"ids": np.array([[1, wrong]])})


@pytest.mark.parametrize("cosine_first", [True, False])
def test_sines_of_a_timestep(cosine_first: bool) -> None:
    flip = """
        back = Constant <value = int64[1] {1}> ()
        zero = Constant <value = int64[1] {0}> ()
        three = Constant <value = int64[1] {3}> ()
        end = Constant <value = int64[1] {9223372036854775807}> ()
        c2 = Slice (waves, three, end, back, back)
        s2 = Slice (waves, zero, three, back, back)
        y = Concat <axis = -1> (c2, s2)"""
    text = f"""g (float[n] x) => (float[n, 6] y) {{
        axis = Constant <value = int64[1] {{1}}> ()
        column = Unsqueeze (x, axis)
        f = Constant <value = float[1, 3] {{1.0, 0.5, 0.1}}> ()
        angle = Mul (column, f)
        s = Sin (angle)
        c = Cos (angle)
        {"waves" if cosine_first else "y"} = Concat <axis = -1> (s, c)
        {flip if cosine_first else ""} }}"""
    x = np.array([0.0, 1.0, 999.0, 501.25], np.float32)
    plan = check(text, {"n": 4}, {}, {"x": x})
    assert kinds(plan) == ["TimestepEmbedding"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Softmax (x)", 'operator "Softmax" of [2, 8]: this operator is not known'),
        ("y = Sub (x, x)", 'operator "Sub": no operation does this'),
        ("y = Sin (x)", 'operator "Sin": a sine of something else'),
        ("y = Add (x, w)", 'operator "Add": a parameter that no product'),
        ('y = Gelu <approximate = "tanh"> (x)', 'operator "Gelu": an approximation'),
        ("y = MatMul (x, x2)", 'operator "MatMul": a product of two tensors'),
        ("y = Cast <to = 11> (x)", 'operator "Cast" of [2, 8]: a cast to type 11'),
        ("y = Gemm <alpha = 0.5> (x, k)", 'operator "Gemm": alpha, beta or transA'),
        (
            "s = Constant <value = int64[1] {17}> ()\n y = Reshape (x, s)",
            'operator "Reshape" of [2, 8], [1]: a shape [17]',
        ),
        ("y = Gather <axis = 1> (w, i)", 'operator "Gather" of [8], [1]: another axis than 0'),
    ],
)
def test_what_is_not_known_is_refused_by_name(text: str, reason: str) -> None:
    whole = (
        "g (float[b, 8] x, float[8, 2] x2, float[8] w, float[8, 8] k, int64[1] i)"
        f" => (float[p, q] y) {{ {text} }}"
    )
    sizes = {"b": 2}
    wanted = f"^g: node .*, {re.escape(reason)}.*run with --engine ort$"
    with pytest.raises(BadInput, match=wanted):
        lowered(whole, sizes, {"w": real(8), "k": real(8, 8)})


@pytest.mark.parametrize(
    ("attributes", "more", "reason"),
    [
        ("", ", mask", "a mask or a cache"),
        ("softcap = 2.0", "", "a soft cap"),
    ],
)
def test_attention_with_more_is_refused(attributes: str, more: str, reason: str) -> None:
    text = f"""g (float[b, 2, t, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v,
        float[t, t] mask) => (float[b, 2, t, 8] y) {{
        y = Attention <{attributes}> (q, k, v{more}) }}"""
    with pytest.raises(BadInput, match=f'operator "Attention": {reason}'):
        lowered(text.replace("<>", ""), SIZES, {})


@pytest.mark.parametrize(
    ("pads", "mode", "fill"),
    [
        ("0, 1, 0, 0, 0, 0, 1, 1", "constant", "0.0"),
        ("0, 0, 0, 0, 0, 0, 1, 1", "constant", "1.0"),
        ("0, 0, 0, 0, 0, 0, 1, 1", "reflect", "0.0"),
        ("0, 0, -1, 0, 0, 0, 1, 1", "constant", "0.0"),
    ],
)
def test_other_padding_is_refused(pads: str, mode: str, fill: str) -> None:
    text = f"""g (float[b, 8, h, w] x) => (float[b, p, q, r] y) {{
        pads = Constant <value = int64[8] {{{pads}}}> ()
        fill = Constant <value = float {{{fill}}}> ()
        y = Pad <mode = "{mode}"> (x, pads, fill) }}"""
    with pytest.raises(BadInput, match='operator "Pad"'):
        lowered(text, SIZES, {})


def test_padding_that_no_convolution_reads_is_refused() -> None:
    text = """g (float[b, 8, h, w] x) => (float[b, 8, p, q] y) {
        pads = Constant <value = int64[8] {0, 0, 0, 0, 0, 0, 1, 1}> ()
        y = Pad (x, pads) }"""
    with pytest.raises(BadInput, match="which only a convolution can read"):
        lowered(text, SIZES, {})


@pytest.mark.parametrize("size", ["3, 10", "6, 11", "7, 10", "6, 8"])
def test_other_enlarging_is_refused(size: str) -> None:
    text = f"""g (float[b, 8, h, w] x) => (float[b, 8, p, q] y) {{
        head = Shape <start = 0, end = 2> (x)
        tail = Constant <value = int64[2] {{{size}}}> ()
        size = Concat <axis = 0> (head, tail)
        y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
            nearest_mode = "floor"> (x, , , size) }}"""
    with pytest.raises(BadInput, match=r'operator "Resize": \[2, 8, 3, 5\] to'):
        lowered(text, SIZES, {})


def test_a_size_that_is_missing_and_a_signature_that_is_another() -> None:
    text = "g (float[b, 8] x) => (float[b, 8] y) { y = Sigmoid (x) }"
    with pytest.raises(BadInput, match=r"^g: no size is given for b$"):
        lowered(text, {}, {})
    wrong: Any = text.replace("=> (float[b, 8] y)", "=> (float[b, 9] y)")
    with pytest.raises(BadInput, match=r"y would be \[2, 8\], the manifest says \['b', 9\]"):
        lowered(wrong, SIZES, {})


def test_a_copy_only_where_memory_demands_it() -> None:
    text = """g (float[b, 2, t, 8] x, float[16, 16] w) => (float[b, t, 16] y) {
        turned = Transpose <perm = [0, 2, 1, 3]> (x)
        shape = Constant <value = int64[3] {0, 0, 16}> ()
        flat = Reshape (turned, shape)
        v = Transpose <perm = [1, 0]> (w)
        y = MatMul (flat, v) }"""
    plan = check(text, SIZES, {"w": real(16, 16)}, {"x": real(2, 2, 5, 8)})
    assert kinds(plan) == ["Copy", "Product"]
    assert isinstance(plan.operations[0], Copy)


def test_a_factor_that_adds_a_dimension_is_no_quick_gelu() -> None:
    text = """g (float[b, 8] x, float[16, 8] w) => (float[1, b, 16] y) {
        v = Transpose <perm = [1, 0]> (w)
        m = MatMul (x, v)
        k = Constant <value = float[1, 1, 1] {1.702}> ()
        a = Mul (m, k)
        s = Sigmoid (a)
        y = Mul (m, s) }"""
    plan = check(text, SIZES, {"w": real(16, 8)}, {"x": real(2, 8)})
    assert kinds(plan) == ["Product", "Elementwise", "Elementwise", "Elementwise"]
    plan = check(
        text.replace("float[1, 1, 1]", "float").replace("[1, b, 16]", "[b, 16]"),
        SIZES,
        {"w": real(16, 8)},
        {"x": real(2, 8)},
    )
    assert kinds(plan) == ["Product"]

"""float32 graphs written for float16: what stays wide, what is cast, and where."""

import numpy as np
import onnx_ir as ir
import pytest

from diffusion_rt.export.precision import to_float16
from support.onnx_text import evaluate, parsed

FLOAT16 = ir.DataType.FLOAT16


EMBEDDING = """
    g (float[n] timestep, float[n,4] added, float[8,4] weight) => (float[n,4] out)
    <int64[1] axis = {1}, float[1,4] frequencies = {1.0, 0.1, 0.01, 0.001},
     float[n,1] a, float[n,4] b, float[n,4] c, float[n,4] d, float[n,8] e, float[n,4] f>
    {
        a = Unsqueeze(timestep, axis)
        b = Mul(a, frequencies)
        c = Sin(b)
        d = Cos(b)
        e = Concat <axis = 1> (c, d)
        f = MatMul(e, weight)
        out = Add(f, added)
    }"""


def test_timesteps_stay_wide_until_they_meet_a_weight() -> None:
    model = parsed(EMBEDDING)
    to_float16(model, ["timestep"])
    types = {v.name: v.dtype for node in model.graph for v in node.outputs}
    assert {types[name] for name in "abcde"} == {ir.DataType.FLOAT}
    assert {types[name] for name in ("f", "out", "e.float16")} == {FLOAT16}
    assert [v.dtype for v in model.graph.inputs] == [ir.DataType.FLOAT, FLOAT16, FLOAT16]
    assert [node.op_type for node in model.graph if node.op_type == "Cast"] == ["Cast"]
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((8, 4)).astype(np.float16)
    steps = np.array([999.5, 3.25], np.float32)
    waves = steps[:, None] * np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    embedded = np.concatenate([np.sin(waves), np.cos(waves)], 1).astype(np.float16)
    added = np.zeros((2, 4), np.float16)
    found = evaluate(model, {"timestep": steps, "added": added, "weight": weight})["out"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, embedded @ weight, rtol=1e-2, atol=1e-2)


def test_a_constant_read_in_both_widths_is_there_twice() -> None:
    model = parsed("""
        g (float[n] timestep, float[n] x) => (float[n] out)
        <float half = {0.5}, float[n] a, float[n] b>
        {
            a = Mul(timestep, half)
            b = Mul(x, half)
            out = Add(a, b)
        }""")
    to_float16(model, ["timestep"])
    assert {v.name: v.dtype for v in model.graph.initializers.values()} == {
        "half": ir.DataType.FLOAT,
        "half.float16": FLOAT16,
    }
    found = evaluate(
        model, {"timestep": np.array([1001], np.float32), "x": np.array([1], np.float16)}
    )["out"]
    assert found[0] == np.float16(501)


def test_the_scales_of_a_resize_are_always_float32() -> None:
    model = parsed("""
        g (float[n,1,h,w] x) => (float[n,1,h2,w2] out)
        <float[4] scales = {1.0, 1.0, 2.0, 2.0}>
        {
            out = Resize <mode = "nearest"> (x, , scales)
        }""")
    to_float16(model, [])
    assert [v.dtype for v in model.graph.initializers.values()] == [ir.DataType.FLOAT]
    assert model.graph.outputs[0].dtype == FLOAT16


def test_casts_to_float32_are_to_float16() -> None:
    model = parsed("""
        g (int64[n] ids, float[n] x) => (float[n] out)
        <float[n] a>
        {
            a = Cast <to = 1> (ids)
            out = Add(a, x)
        }""")
    to_float16(model, [])
    found = evaluate(model, {"ids": np.array([3]), "x": np.array([0.5], np.float16)})["out"]
    assert found.dtype == np.float16
    assert found[0] == np.float16(3.5)


def test_a_constant_out_of_range_is_an_error() -> None:
    model = parsed("g (float[n] x) => (float[n] out) <float big = {1e6}> { out = Mul(x, big) }")
    with pytest.raises(ValueError, match=r"constant big is out of float16's range"):
        to_float16(model, [])


def test_infinity_is_not_out_of_range() -> None:
    model = parsed("g (float[n] x) => (float[n] out) <float low = {-1.0}> { out = Add(x, low) }")
    model.graph.initializers["low"].const_value = ir.tensor(np.float32(-np.inf))
    to_float16(model, [])
    assert np.isneginf(evaluate(model, {"x": np.array([1], np.float16)})["out"][0])


def test_a_clone_of_the_graph_keeps_its_types() -> None:
    model = parsed(EMBEDDING)
    clone = model.clone()
    to_float16(clone, ["timestep"])
    assert FLOAT16 not in {v.dtype for node in model.graph for v in node.outputs}
    assert FLOAT16 not in {v.dtype for v in model.graph.inputs}

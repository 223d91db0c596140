"""Parameters become byte ranges, in the dtype they are stored in."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from diffusion_rt.engines.safetensors_file import StoredTensor
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.export.bind import bind_weights, signature
from diffusion_rt.export.check import run, session
from diffusion_rt.export.names import Weight
from diffusion_rt.export.precision import to_float16
from support.onnx_text import parsed

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
VALUES = [1.0, 2.5, -3.0, 0.125]  # exact in all three


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_weight_is_read_where_it_lies_and_cast_where_it_must_be(
    tmp_path: Path, dtype: str, precision: str
) -> None:
    content = np.array(VALUES, TYPES[dtype]).tobytes()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/weights.safetensors").write_bytes(b"header" + content)
    weight = Weight("unet/weights.safetensors", StoredTensor(dtype, (4,), 6, len(content)))
    model = parsed("g (float[n,4] x, float[4] scale) => (float[n,4] out) { out = Mul(x, scale) }")
    if precision == "float16":
        to_float16(model, [])
    bind_weights(model, {"scale": weight}, tmp_path)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    same = (dtype, precision) in (("F32", "float32"), ("F16", "float16"))
    assert len(casts) == (0 if same else 1)
    assert signature(model) == (
        (TensorSpec("x", precision, ("n", 4)),),  # type: ignore[arg-type]
        (TensorSpec("out", precision, ("n", 4)),),  # type: ignore[arg-type]
    )
    proto = ir.to_proto(model)
    assert [tensor.name for tensor in proto.graph.initializer] == ["scale"]
    entries = {e.key: e.value for e in proto.graph.initializer[0].external_data}
    assert entries == {
        "location": "unet/weights.safetensors",
        "offset": "6",
        "length": str(len(content)),
    }
    assert str(tmp_path).encode() not in proto.SerializeToString()
    loaded = session(proto.SerializeToString(), tmp_path)
    x = np.array([[1, 2, 3, 4], [0, 0, 1, 8]], np.float32)
    found = run(loaded, signature(model)[0], {"x": x})["out"]
    np.testing.assert_array_equal(found, x * VALUES)


def test_a_weight_read_twice_is_cast_once(tmp_path: Path) -> None:
    weight = Weight("w.safetensors", StoredTensor("BF16", (2,), 8, 4))
    model = parsed("""
        g (float[2] x, float[2] w) => (float[2] out)
        {
            a = Mul(x, w)
            out = Add(a, w)
        }""")
    bind_weights(model, {"w": weight}, tmp_path)
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "Add"]

"""A plan: profiles, flags and an ONNX model in one run of bytes; and its arithmetic on the host."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from support.simulated_tensorrt.enums import DataType
from support.simulated_tensorrt.rules import Broken
from support.simulated_tensorrt.sizes import name_sizes

VERSION = "11.4.0.106"
MAGIC = b"a plan of the simulated TensorRT\n"

Shape = tuple[int, ...]

TYPES: dict[int, DataType] = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT64: DataType.INT64,
    TensorProto.INT32: DataType.INT32,
    TensorProto.BOOL: DataType.BOOL,
}
NUMPY: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class End:
    """An input or output of a network; -1 is a size that is known when it runs."""

    name: str
    dtype: str  # of DataType
    shape: Shape
    symbols: tuple[str, ...]  # the ONNX model's name of each dimension, "" where it has none


@dataclass(frozen=True)
class Stored:
    """One of the weights that refitting can replace."""

    dtype: str
    count: int
    sha256: str
    tensor: str  # the initializer of the model; none where the parser added them


@dataclass(frozen=True)
class Facts:
    """What a plan says of itself."""

    version: str
    arch: int
    name: str
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    profiles: tuple[Mapping[str, tuple[Shape, Shape, Shape]], ...]
    flags: tuple[str, ...]
    hardware: str
    weights: Mapping[str, Stored]
    layers: int


def pack(facts: Facts, model: bytes) -> bytes:
    """The bytes of a plan."""
    text = json.dumps(asdict(facts)).encode()
    body = struct.pack("<Q", len(text)) + text + model
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(plan: bytes) -> tuple[Facts, bytes] | None:
    """What a plan holds; None where these are no plan's bytes at all."""
    if not plan.startswith(MAGIC):
        return None
    digest, body = plan[len(MAGIC) :][:32], plan[len(MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise Broken("TensorRT is shown a damaged plan: native code that was not verified")
    (length,) = struct.unpack_from("<Q", body)
    read = json.loads(body[8 : 8 + length])
    facts = Facts(
        **{
            **read,
            "inputs": _ends(read["inputs"]),
            "outputs": _ends(read["outputs"]),
            "profiles": tuple(
                {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()}
                for profile in read["profiles"]
            ),
            "flags": tuple(read["flags"]),
            "weights": {name: Stored(**stored) for name, stored in read["weights"].items()},
        }
    )
    return facts, body[8 + length :]


def scratch_bytes(facts: Facts, shapes: Mapping[str, Shape]) -> int:
    """Device memory that a run at these input shapes takes: some multiple of what it reads."""
    sizes = [int(np.prod(shapes[end.name])) * DataType[end.dtype].itemsize for end in facts.inputs]
    return -(-4 * sum(sizes) // 256) * 256


def ends_of(values: Sequence[Any]) -> tuple[End, ...]:
    """The inputs or outputs that an ONNX model declares."""
    found = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        symbols = tuple(d.dim_param for d in tensor.shape.dim)
        found.append(End(value.name, TYPES[tensor.elem_type].name, tuple(sizes), symbols))
    return tuple(found)


class Arithmetic:
    """A model that ONNX Runtime computes on the host.

    bfloat16 is computed as float32, with weights that bfloat16 holds.
    """

    def __init__(self, content: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            _for_host(content), options, providers=["CPUExecutionProvider"]
        )
        self.names = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = self._session.run(self.names, dict(feeds))
        return dict(zip(self.names, found, strict=True))


def _for_host(content: bytes) -> bytes:
    from diffusion_rt.engines.ort.lowering import lower

    model = onnx.load_model_from_string(content)
    for tensor in model.graph.initializer:
        _widen(tensor)
    name_sizes(model)
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if attribute.name.startswith("TRT_"):
                node.attribute.remove(attribute)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    found = model.SerializeToString()
    return found if halves else lower(found)


def _widen(tensor: Any) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        wide = np.frombuffer(tensor.raw_data, np.uint16).astype(np.uint32) << 16
        values = wide.view(np.float32).reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _ends(read: Sequence[Mapping[str, Any]]) -> tuple[End, ...]:
    return tuple(End(e["name"], e["dtype"], tuple(e["shape"]), tuple(e["symbols"])) for e in read)

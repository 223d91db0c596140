"""What TensorRT 11's ONNX parser takes: operators, the types they compute in, their attributes.

Operators, types and restrictions are those of onnx-tensorrt's table of operators (docs/operators.md
of release 10.15, opsets 9 to 24) with Swish, which 11.0 added; opsets up to 25 are those of
NVIDIA's ONNX Opset Guide for 11.x. What attributes may be is read off the importers (10.1 and 11.0,
onnxOpImporters.cpp and AttentionHelpers.cpp), for the operators that our graphs have; of others no
attribute is known here, so one that turns up has to be looked up first.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import onnx
from onnx import TensorProto

OPSETS = range(9, 26)

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_VALUES = _NUMBERS | {TensorProto.BOOL}
_BOOL = frozenset({TensorProto.BOOL})
_CASTS = _VALUES | {TensorProto.UINT8}

_BY_TYPES: Mapping[frozenset[int], str] = {
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip
        Conv ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gelu Gemm
        GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish
        Hardmax InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax
        LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu QuantizeLinear
        RMSNormalization RNN Reciprocal Resize RotaryEmbedding Round Scan Selu Sigmoid Sin Sinh
        Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Upsample
    """,
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual
        Max Mean Min Mod Mul Neg Pad Pow ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
        ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements
        ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
    """,
    frozenset({TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}): "Range",
    _VALUES: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND
        Identity OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu
        Unsqueeze Where
    """,
    _CASTS: "Cast CastLike",
    _BOOL: "And Not Or Xor",
}
TYPES = {operator: types for types, names in _BY_TYPES.items() for operator in names.split()}
"""Operator -> the types of the data it works on."""

Allowed = Callable[[Any], bool]


def _any(value: Any) -> bool:
    return True


def _of(*values: Any) -> Allowed:
    return lambda value: value in values


_MODES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")

ATTRIBUTES: Mapping[str, Mapping[str, Allowed]] = {
    "ArgMax": {"axis": _any, "keepdims": _of(0, 1), "select_last_index": _of(0, 1)},
    "Attention": {
        "scale": _any,
        "is_causal": _of(0, 1),
        "softcap": _of(0.0),
        "qk_matmul_output_mode": _of(0),
        "TRT_decomposable": _of(0, 1),
    },
    "Cast": {"to": lambda value: value in _CASTS},
    "Concat": {"axis": _any},
    "Constant": {"value": _any, "value_float": _any, "value_int": _any, "value_ints": _any},
    "ConstantOfShape": {"value": _any},
    "Conv": {
        "auto_pad": _of("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
        "dilations": _any,
        "group": _any,
        "kernel_shape": _any,
        "pads": _any,
        "strides": _any,
    },
    "Gather": {"axis": _any},
    "GatherND": {"batch_dims": _any},
    "Gelu": {"approximate": _of("none", "tanh")},
    "Gemm": {"alpha": _any, "beta": _any, "transA": _of(0, 1), "transB": _of(0, 1)},
    # The importer reads stash_type and does not heed it: our edits cast instead.
    "GroupNormalization": {"epsilon": _any, "num_groups": _any, "stash_type": _of(1)},
    "InstanceNormalization": {"epsilon": _any},
    "LayerNormalization": {"axis": _any, "epsilon": _any, "stash_type": _of(1)},
    "Pad": {"mode": _of("constant", "edge", "reflect")},
    "Reshape": {"allowzero": _of(0, 1)},
    "Resize": {
        "antialias": _of(0),
        "coordinate_transformation_mode": _of(*_MODES),
        "cubic_coeff_a": _any,  # without effect in the modes below
        "exclude_outside": _of(0),
        "extrapolation_value": _any,  # likewise
        "keep_aspect_ratio_policy": _of("stretch"),
        "mode": _of("nearest", "linear"),
        "nearest_mode": _of(*_NEAREST),
    },
    "Shape": {"start": _any, "end": _any},
    "Softmax": {"axis": _any},
    "Split": {"axis": _any, "num_outputs": _any},
    "Transpose": {"perm": _any},
}

_DATA = {"Where": 1, "OneHot": 2}
"""Where the data stands among the inputs, if it is not first."""


def problems(content: bytes) -> list[str]:
    """What the parser has against a model, a line for each; [] where it takes it."""
    model: Any = onnx.load_model_from_string(content)
    return [
        f"{node.op_type} {node.name}: {what}" if node is not None else what
        for node, what in examined(model)
    ]


def examined(model: Any) -> Iterator[tuple[Any, str]]:
    """Each node that the parser does not take, None for the model as a whole, and why."""
    for known in model.opset_import:
        if known.domain not in ("", "ai.onnx") or known.version not in OPSETS:
            yield None, f"opset {known.version} of {known.domain or 'ONNX'}"
    types, ranks = _types(model)
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for what in _of_node(node, types, ranks):
            yield node, what
        if node.op_type == "Conv" and _computed(made.get(node.input[1])):
            yield node, "its filter is no initializer"


def _computed(node: Any) -> bool:
    """Whether a filter that this node makes is one that the importer does not take."""
    return node is not None and node.op_type not in ("Constant", "DequantizeLinear")


def _of_node(node: Any, types: Mapping[str, int], ranks: Mapping[str, int]) -> Iterator[str]:
    op = node.op_type
    if node.domain not in ("", "ai.onnx") or op not in TYPES:
        yield f"no such operator ({node.domain or 'ONNX'})"
        return
    place = _DATA.get(op, 0)
    if op in ("Constant", "ConstantOfShape"):
        values = [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == "value"]
        data = values[0].data_type if values else TensorProto.FLOAT
    else:
        data = types.get(node.input[place], 0)
    if data not in TYPES[op]:
        yield f"data of type {data and TensorProto.DataType.Name(data)}"
    allowed = ATTRIBUTES.get(op, {})
    given = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        given[attribute.name] = value.decode() if isinstance(value, bytes) else value
    for name, value in given.items():
        if name not in allowed:
            yield f"an attribute {name}"
        elif not allowed[name](value):
            yield f"{name} of {value}"
    yield from _more(op, node, given, ranks)


def _more(op: str, node: Any, given: Mapping[str, Any], ranks: Mapping[str, int]) -> Iterator[str]:
    """Restrictions beyond types and attributes."""
    if op == "Attention":
        if any(ranks.get(name) != 4 for name in node.input[:3]):
            yield "queries, keys or values that are not of rank 4"
        if any(node.input[4:]) or any(node.output[1:]):
            yield "keys and values of the past, or more than one output"
    elif op == "LayerNormalization" and any(node.output[1:]):
        yield "more than one output"
    elif op == "Split" and "num_outputs" in given:
        if any(node.input[1:]):
            yield "both num_outputs and lengths"
        elif given["num_outputs"] != len(node.output):
            yield f"num_outputs of {given['num_outputs']} with {len(node.output)} outputs"
    elif op == "Gemm" and any(ranks.get(name) != 2 for name in node.input[:2]):
        yield "a matrix that is not of rank 2"


def _types(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Type and rank of every value and initializer, where they can be told."""
    inferred: Any = onnx.ModelProto()
    inferred.CopyFrom(model)
    for node in inferred.graph.node:
        if node.op_type == "GroupNormalization":  # which shapes are not inferred through
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    with suppress(onnx.shape_inference.InferenceError):  # of an operator that nobody knows
        inferred = onnx.shape_inference.infer_shapes(inferred, data_prop=True)
    types, ranks = {}, {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            ranks[value.name] = len(tensor.shape.dim)
    for tensor in inferred.graph.initializer:
        types[tensor.name], ranks[tensor.name] = tensor.data_type, len(tensor.dims)
    return types, ranks

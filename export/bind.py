"""From a traced part to an ONNX file: its arithmetic, and its parameters as byte ranges.

The initializers are external data that point into the checkpoint's own safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from diffusion_rt import __version__
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.spec import Dtype, Precision, TensorSpec
from diffusion_rt.export.names import Weight
from diffusion_rt.export.precision import to_float16

TYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
}


WIDE = ("timestep", "time_ids")  # inputs that are float32 in a graph of any precision


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file that is ready to be written."""

    name: str
    precision: Precision
    content: bytes
    variant: GraphVariant


def file_name(graph: str, precision: Precision) -> str:
    """What the ONNX file of a graph is called."""
    return f"{graph}.{precision}.onnx"


def finished(
    name: str,
    precision: Precision,
    traced: ir.Model,
    weights: Mapping[str, Weight],
    folder: Path,
) -> Graph:
    """The file of one graph from its float32 trace, which stays as it is."""
    model = traced.clone()
    model.graph.name = name
    model.producer_name, model.producer_version = "diffusion-rt", __version__
    if precision == "float16":
        to_float16(model, WIDE)
    bind_weights(model, weights, folder)
    inputs, outputs = signature(model)
    variant = GraphVariant(file=file_name(name, precision), inputs=inputs, outputs=outputs)
    return Graph(name, precision, ir.to_proto(model).SerializeToString(), variant)


def bind_weights(model: ir.Model, weights: Mapping[str, Weight], folder: Path) -> None:
    """Make each parameter of `model`, which is an input, an initializer stored in its file.

    It keeps its name and the dtype it is stored in; where the graph computes in another, it is
    cast where it is read. The files are not opened.
    """
    graph = model.graph
    given = []
    for value in graph.inputs:
        weight = weights.get(value.name or "")
        if weight is None:
            given.append(value)
            continue
        assert value.name is not None
        assert value.shape is not None
        stored = ir.Value(name=value.name, shape=value.shape)
        stored.const_value = ir.ExternalTensor(
            weight.file,
            weight.tensor.offset,
            weight.tensor.length,
            TYPES[weight.tensor.dtype],
            shape=value.shape,
            name=value.name,
            base_dir=folder,
        )
        stored.dtype = TYPES[weight.tensor.dtype]
        read = stored
        if stored.dtype != value.dtype:
            assert value.dtype is not None
            cast = ir.node("Cast", [stored], {"to": value.dtype}, name=f"{value.name}/Cast")
            read = cast.outputs[0]
            read.name = f"{value.name}.{_DTYPES[value.dtype]}"
            read.type, read.shape = value.type, value.shape
            graph.insert_before(graph[0], cast)
        ir.convenience.replace_all_uses_with(value, read)
        graph.initializers.add(stored)
    graph.inputs[:] = given


def signature(
    model: ir.Model,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a graph whose weights are bound, as the manifest says them."""
    return (
        tuple(_spec(value) for value in model.graph.inputs),
        tuple(_spec(value) for value in model.graph.outputs),
    )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(value.name, _DTYPES[value.dtype], shape)

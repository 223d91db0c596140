"""Parameters of a graph become byte ranges of the checkpoint's files."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from diffusion_rt.engines.spec import Dtype, Precision, TensorSpec
from diffusion_rt.export.names import Weight

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


def keeps_float32(precision: Precision) -> tuple[str, ...]:
    """Inputs that stay float32 in a graph of this precision."""
    return ("timestep", "time_ids") if precision == "float16" else ()

"""Graphs written as text, lowered with some of their inputs as a checkpoint's parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from diffusion_rt.engines.native.graph import read_graph
from diffusion_rt.engines.native.host import HostMemory, laid_out, run
from diffusion_rt.engines.native.lower import lower
from diffusion_rt.engines.native.plan import Arithmetic, Plan, Weight
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.spec import TensorSpec
from support.onnx_text import Arrays, evaluate, parsed

DTYPES: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
}


def specs_of(values: Any) -> list[TensorSpec]:
    """The signature of a graph's inputs or outputs."""
    return [
        TensorSpec(
            value.name,
            DTYPES[value.dtype],
            tuple(d if isinstance(d, int) else str(d.value) for d in value.shape),
        )
        for value in values
    ]


def lowered(
    text: str,
    sizes: Mapping[str, int],
    parameters: Mapping[str, NDArray[Any]],
    dtype: Arithmetic = "float32",
) -> Plan:
    """The plan of a graph; its inputs among `parameters` are tensors of a checkpoint."""
    model = parsed(text)
    read = read_graph(ir.to_proto(model).SerializeToString(), "g")
    given = [value for value in model.graph.inputs if value.name not in parameters]
    stored = {
        name: ExternalTensor(name, str(array.dtype), array.shape, "w.safetensors", 0, array.nbytes)
        for name, array in parameters.items()
    }
    graph = replace(
        read,
        inputs=tuple(value.name or "" for value in given),
        constants={**stored, **read.constants},
    )
    return lower(graph, specs_of(given), specs_of(model.graph.outputs), sizes, dtype, "g")


def run_lowered(plan: Plan, parameters: Mapping[str, NDArray[Any]], inputs: Arrays) -> Arrays:
    """The outputs of a plan, poisoned before."""

    def weights(weight: Weight) -> NDArray[Any]:
        if not weight.sources:
            return plan.constants[weight.name]
        return laid_out(weight, [parameters[source.name] for source in weight.sources])

    outputs = {
        name: np.full(plan.buffers[name].shape, np.nan, plan.buffers[name].dtype)
        for name in plan.outputs
    }
    run(plan, HostMemory(plan, weights, {**inputs, **outputs}))
    return outputs


def check(
    text: str,
    sizes: Mapping[str, int],
    parameters: Mapping[str, NDArray[Any]],
    inputs: Arrays,
    tolerance: float = 3e-6,
) -> Plan:
    """Lower a graph, and hold what its plan computes against ONNX's own reference."""
    plan = lowered(text, sizes, parameters)
    found = run_lowered(plan, parameters, inputs)
    with np.errstate(over="ignore"):
        truth = evaluate(parsed(text), {**inputs, **parameters})
    for name, values in truth.items():
        assert found[name].shape == values.shape
        scale = float(np.abs(values).max())
        assert np.allclose(found[name], values, rtol=0, atol=tolerance * scale), name
    return plan

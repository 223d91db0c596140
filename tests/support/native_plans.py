"""Arrays for any graph of a model, and a graph run by its plan or by another engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from diffusion_rt.engines.native.host import HostMemory, laid_out, read_source, run
from diffusion_rt.engines.native.plan import Plan, Weight
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.spec import TensorSpec

Arrays = dict[str, NDArray[Any]]


def graph_sizes(graph: str, batch: int, tokens: int, height: int, width: int) -> dict[str, int]:
    """A size for each symbol a graph's inputs may have; height and width in latents."""
    pixels = 8 if graph == "vae_encoder" else 1
    return {
        "batch": batch,
        "tokens": tokens,
        "n": 3 * batch,
        "height": pixels * height,
        "width": pixels * width,
    }


def draw_inputs(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], vocabulary: int, seed: int = 0
) -> Arrays:
    """An array for each input, of the size that it has in use."""
    draw = np.random.default_rng(seed)
    arrays: Arrays = {}
    for spec in inputs:
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            arrays[spec.name] = draw.integers(0, vocabulary, shape)
        elif spec.name == "timestep":
            arrays[spec.name] = draw.uniform(0, 999, shape).astype(spec.dtype)
        elif spec.name == "time_ids":
            arrays[spec.name] = draw.integers(0, 1024, shape).astype(spec.dtype)
        else:
            arrays[spec.name] = draw.standard_normal(shape).astype(spec.dtype)
    return arrays


def run_plan(plan: Plan, folder: Path, inputs: Arrays) -> Arrays:
    """The outputs of a plan, in the types of its signature, poisoned before."""
    held: dict[Weight, NDArray[Any]] = {}

    def weights(weight: Weight) -> NDArray[Any]:
        if not weight.sources:
            return plan.constants[weight.name]
        if weight not in held:
            stored = [read_source(folder, source) for source in weight.sources]
            held[weight] = laid_out(weight, stored)
        return held[weight]

    outputs = {
        name: np.full(plan.buffers[name].shape, np.nan, plan.buffers[name].dtype)
        for name in plan.outputs
    }
    run(plan, HostMemory(plan, weights, {**inputs, **outputs}))
    return outputs


def run_engine(engine: Engine, inputs: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """The outputs of an engine, poisoned before."""
    outputs = {
        name: np.full(shapes[name], np.nan, spec.dtype) for name, spec in engine.outputs.items()
    }
    engine.bind({**inputs, **outputs})
    engine.enqueue()
    engine.close()
    return outputs


def relative_error(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """The distance from the truth by the truth's length; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    wanted = truth.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def run_rounded(file: Path, narrow: Path, dtype: str, inputs: Arrays) -> Arrays:
    """A float32 ONNX graph, every result rounded to `dtype`: plain code of that type.

    `narrow` is the float16 graph, which says what is rounded. ONNX Runtime itself leaves most of
    its float16 graph in float32, so it is no yardstick.
    """
    kinds = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    model = onnx.load(file, load_external_data=False)
    other = onnx.load(narrow, load_external_data=False).graph
    half = {
        value.name
        for value in (*other.value_info, *other.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        casts = []
        for place, name in enumerate(node.output):
            if name in half:
                node.output[place] = f"{name}.exact"
                casts += [
                    helper.make_node("Cast", [f"{name}.exact"], [f"{name}.short"], to=kinds[dtype]),
                    helper.make_node("Cast", [f"{name}.short"], [name], to=TensorProto.FLOAT),
                ]
        model.graph.node.extend([node, *casts])
    del model.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(file.parent)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))

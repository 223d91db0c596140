"""A plan brought to the device: its hash verified, its weights complete."""

from math import prod
from pathlib import Path

import tensorrt as trt

from diffusion_rt.engines.artefact import Progress
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.plan_file import PlanHeader, check_usable, open_plan
from diffusion_rt.engines.trt.prepare import prepare
from diffusion_rt.engines.trt.weights import map_weights
from diffusion_rt.kernels.driver import Device

TYPES = {
    "float32": trt.DataType.FLOAT,
    "float16": trt.DataType.HALF,
    "bfloat16": trt.DataType.BF16,
    "int64": trt.DataType.INT64,
}


def load_plan(
    folder: Path,
    graph: str,
    model: ModelFolder,
    machine: Machine,
    device: Device,
    messages: Messages,
    progress: Progress | None = None,
) -> tuple[trt.ICudaEngine, PlanHeader]:
    """The engine of one plan file and what the file says of it.

    Raises BadInput where the file is damaged or for another model, GPU, driver or TensorRT,
    OutOfMemory, and Fault where TensorRT refuses a plan that should fit.
    """
    messages.forget()
    free = device.memory().free  # which also makes its context this thread's
    runtime = trt.Runtime(messages)
    with open_plan(folder, graph, progress) as plan:
        header = plan.header
        check_usable(header, plan.path, model, machine)
        # Its code is our own machine's or that of who may write to the folder, as the plan's is.
        runtime.engine_host_code_allowed = header.key.builder.version_compatible
        engine = runtime.deserialize_cuda_engine(plan.data)
    if engine is None:
        if messages.out_of_memory():
            raise short_of_memory(f"{graph}: its plan", header.plan_bytes, free)
        raise Fault(
            f"{plan.path}: TensorRT does not load it: {messages.reason()}; remove it and build it "
            "again"
        )
    _check_tensors(engine, plan.path, header)
    if header.key.builder.stripped:
        _complete(engine, model, header, messages)
    return engine, header


def _check_tensors(engine: trt.ICudaEngine, path: Path, header: PlanHeader) -> None:
    """The header's word on inputs, outputs and profiles, held against the engine's own."""
    found = {
        name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name))
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    wanted = {spec.name: (trt.TensorIOMode.INPUT, TYPES[spec.dtype]) for spec in header.inputs}
    for spec in header.outputs:
        wanted[spec.name] = (trt.TensorIOMode.OUTPUT, TYPES[spec.dtype])
    same = found == wanted and engine.num_optimization_profiles == len(header.key.profiles)
    if not same:
        raise BadInput(f"{path}: the plan is not what its header says; remove it, build it again")


def _complete(
    engine: trt.ICudaEngine, model: ModelFolder, header: PlanHeader, messages: Messages
) -> None:
    """Give a stripped engine its weights, from the checkpoint where they lie."""
    key = header.key
    prepared = prepare(model, key.graph, key.edits)
    if prepared.sha256 != key.network:
        raise BadInput(
            f"{key.graph}: the plan was made by another diffusion-rt ({header.made_by}), which "
            "prepares this graph in another way; build it again"
        )
    weights = map_weights(model.path, prepared.weights, cache_folder("trt"))
    refitter = trt.Refitter(engine, messages)
    for name in refitter.get_all_weights():
        if name not in weights:
            continue
        weight = weights[name]
        given = trt.Weights(TYPES[weight.dtype], weight.address, prod(weight.shape))
        if not refitter.set_named_weights(name, given):
            raise Fault(f"{key.graph}: TensorRT refuses the weight {name}: {messages.reason()}")
    if missing := refitter.get_missing_weights():
        raise Fault(
            f"{key.graph}: the plan misses {len(missing)} weights that the checkpoint does not "
            f"have, {missing[0]} among them; build it again"
        )
    if not refitter.refit_cuda_engine():
        raise Fault(f"{key.graph}: TensorRT does not take the weights: {messages.reason()}")

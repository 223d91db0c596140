"""A plan brought to the device: its hash verified, its weights complete."""

from collections.abc import Mapping
from pathlib import Path

import tensorrt as trt

from diffusion_rt.engines.artefact import Progress
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.kept import kept_name, remove_superseded
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.plan_file import Plan, PlanHeader, check_usable, open_plan
from diffusion_rt.engines.trt.prepare import Prepared, prepare
from diffusion_rt.engines.trt.refit import TYPES, complete
from diffusion_rt.engines.trt.weights import MappedWeight, digest_of, in_memory, map_weights
from diffusion_rt.kernels.driver import Device

WAYS_OUT = (
    "end what else uses the GPU (nvidia-smi), take --engine native with what --memory there is, or "
    "--engine ort"
)


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
    with open_plan(folder, graph, progress) as plan:
        header = plan.header
        check_usable(header, plan.path, model, machine)
        prepared = _prepared(model, header) if header.key.builder.stripped else None
        try:
            return _loaded(plan, prepared, model, messages), header
        except OutOfMemory as short:
            needed = header.plan_bytes + (prepared.weight_bytes if prepared else 0)
            told = short_of_memory(f"{graph}: its plan", needed, free)
            raise OutOfMemory(f"{told} ({short}); {WAYS_OUT}") from None


def _loaded(
    plan: Plan, prepared: Prepared | None, model: ModelFolder, messages: Messages
) -> trt.ICudaEngine:
    """The engine of a plan, with its weights; `prepared` is the graph of one that has none."""
    runtime = messages.made("runtime", lambda: trt.Runtime(messages))
    # Its code is our own machine's or that of who may write to the folder, as the plan's is.
    runtime.engine_host_code_allowed = plan.header.key.builder.version_compatible
    engine = runtime.deserialize_cuda_engine(plan.data)
    if engine is None:
        raise messages.failure(
            f"{plan.path}: TensorRT does not load it", "remove it and build it again"
        )
    _check_tensors(engine, plan.path, plan.header)
    if prepared is not None:
        added = {
            constant.name: in_memory(constant.name, constant.dtype, bytes.fromhex(constant.data))
            for constant in plan.header.constants
        }
        numbers = {**checkpoint_weights(model, prepared), **prepared.constants, **added}
        complete(engine, prepared.graph, numbers, messages)
    return engine


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


def checkpoint_weights(model: ModelFolder, prepared: Prepared) -> Mapping[str, MappedWeight]:
    """What a stripped plan takes from the checkpoint; what must be cast is kept in the cache.

    Casts of the checkpoint that was in this folder before are removed there.
    """
    hashes = {name: record.sha256 for name, record in model.manifest.files.items()}
    kept = kept_name(model, digest_of(prepared.weights, hashes))
    folder = cache_folder("trt")
    found = map_weights(model.path, prepared.weights, folder, kept=kept)
    remove_superseded(folder, model)
    return found


def _prepared(model: ModelFolder, header: PlanHeader) -> Prepared:
    """The graph that a stripped plan was built from, with the places of its weights."""
    key = header.key
    prepared = prepare(model, key.graph, key.edits)
    if prepared.sha256 != key.network:
        raise BadInput(
            f"{key.graph}: the plan was made by another diffusion-rt ({header.made_by}), which "
            "prepares this graph in another way; build it again"
        )
    return prepared

"""Every graph on ONNX Runtime against its network in torch in float32, on random inputs.

The parts of the UNet run one after the other as the runtime runs them, and what crosses from part
to part is compared with what the modules of that name gave in torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffusion_rt.engines.errors import Fault
from diffusion_rt.engines.ort.library import load_library
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.export.bind import Graph
from diffusion_rt.export.names import Weight
from diffusion_rt.export.trace import Config, Plan

Array = NDArray[Any]
Arrays = dict[str, Array]

# Relative error in the 2-norm. Measured on real and random checkpoints: up to 4e-6 and 4e-3.
LIMITS = {"float32": 1e-4, "float16": 3e-2}
SIZES = (  # batch, tokens, height and width of the latent
    (1, 77, 17, 23),
    (3, 154, 24, 8),
)
MEMORY = Path("/proc/meminfo")
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far one graph is from torch: a relative error, or why there is none."""

    graph: str
    precision: str
    error: float | None
    remark: str = ""


def check_network(
    plan: Plan,
    config: Config,
    weights: Mapping[str, Weight],
    folder: Path,
    graphs: Sequence[Graph],
) -> list[Outcome]:
    """Check all graphs of one network, whose weights lie in `folder`.

    Raises Fault where one is further from torch than rounding explains. A network that does not fit
    the free memory twice is not checked, and the outcome says so.
    """
    if remark := _too_big(weights):
        return [Outcome(graph.name, graph.precision, None, remark) for graph in graphs]
    module = load(plan, config, weights, folder)
    crossing = {spec.name for graph in graphs for spec in graph.variant.outputs}
    sessions = {graph.variant.file: session(graph.content, folder) for graph in graphs}
    errors = dict.fromkeys(sessions, 0.0)
    with _Taps(module, crossing) as taps:
        for number, (batch, tokens, height, width) in enumerate(SIZES):
            given = _inputs(plan, config, batch, tokens, height, width, seed=number)
            wanted = taps.run(plan, given)
            known = {graph.precision: dict(given) for graph in graphs}
            for graph in graphs:  # parts stand in the order in which they run
                file, arrays = graph.variant.file, known[graph.precision]
                arrays |= run(sessions[file], graph.variant.inputs, arrays)
                for spec in graph.variant.outputs:
                    error = relative_error(arrays[spec.name], _shaped(wanted[spec.name], spec))
                    errors[file] = max(errors[file], error)
    return [_outcome(graph, errors[graph.variant.file], config) for graph in graphs]


def _outcome(graph: Graph, error: float, config: Config) -> Outcome:
    name, precision = graph.name, graph.precision
    if not np.isfinite(error) and precision == "float16" and config.get("force_upcast"):
        return Outcome(name, precision, None, "overflows float16, as its config says it may")
    if not error <= LIMITS[precision]:
        raise Fault(
            f"{name}.{precision}.onnx differs from torch by {error:.1e} (relative), at most "
            f"{LIMITS[precision]:.0e} is rounding; nothing was written, please report it"
        )
    return Outcome(name, precision, error)


def load(plan: Plan, config: Config, weights: Mapping[str, Weight], folder: Path) -> nn.Module:
    """The network in torch, float32, with the weights of `folder`."""
    with torch.device("meta"):
        module = plan.module(config).eval().requires_grad_(False)
    names = plan.published(module)
    state = {name: _tensor(weights[names[name]], folder) for name, _ in module.named_parameters()}
    module.load_state_dict(
        {name: value.reshape(module.get_parameter(name).shape) for name, value in state.items()},
        assign=True,
        strict=False,
    )
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids")
        module.get_submodule(name.rpartition(".")[0]).register_buffer(
            "position_ids", torch.arange(buffer.shape[1])[None], persistent=False
        )
    return module


def _tensor(weight: Weight, folder: Path) -> torch.Tensor:
    stored = weight.tensor
    content = np.memmap(folder / weight.file, np.uint8, "c", stored.offset, (stored.length,))
    return torch.from_numpy(content).view(_TORCH[stored.dtype]).float()


def session(content: bytes, folder: Path) -> Any:
    """A graph on ONNX Runtime, its weights in `folder`."""
    library = load_library()
    options = library.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return library.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(loaded: Any, inputs: Sequence[TensorSpec], known: Arrays) -> Arrays:
    """What a graph gives for the inputs of these names in `known`, cast to the types it takes."""
    feed = {spec.name: known[spec.name].astype(spec.dtype) for spec in inputs}
    names = [output.name for output in loaded.get_outputs()]
    return dict(zip(names, loaded.run(names, feed), strict=True))


def relative_error(found: Array, wanted: Array) -> float:
    """The 2-norm of the difference, by that of `wanted`; infinite where either is not finite."""
    if not np.isfinite(found).all() or not np.isfinite(wanted).all():
        return float("inf")
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


class _Taps:
    """Runs a module and keeps what the submodules gave that crossing values are named after."""

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        self.module = module
        self.kept: dict[str, torch.Tensor] = {}
        self.hooks = []
        for name in names:
            if path := _path(name):
                tapped = module.get_submodule(f"model.{path}")
                self.hooks.append(tapped.register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def keep(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            self.kept[name] = output

        return keep

    def run(self, plan: Plan, given: Arrays) -> Arrays:
        """All outputs of the module, and those of the tapped submodules."""
        with torch.inference_mode():
            found = self.module(*(torch.from_numpy(given[name]) for name in plan.inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        kept = {**self.kept, **dict(zip(plan.outputs, outputs, strict=True))}
        return {name: value.numpy() for name, value in kept.items()}

    def __enter__(self) -> "_Taps":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _path(name: str) -> str | None:
    """The submodule that gives a value which crosses between the parts of the UNet."""
    for ending, module in ((".key", ".to_k"), (".value", ".to_v")):
        if name.endswith(ending):
            return name.removesuffix(ending) + module
    if name == "added":
        return "add_embedding.linear_2"
    return name if name.endswith(".time_emb_proj") else None


def _shaped(value: Array, spec: TensorSpec) -> Array:
    """A layer's [batch, tokens, heads * size] as the [batch, heads, tokens, size] it becomes."""
    if value.ndim == len(spec.shape):
        return value
    heads = int(spec.shape[1])
    return value.reshape(*value.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _inputs(
    plan: Plan, config: Config, batch: int, tokens: int, height: int, width: int, *, seed: int
) -> Arrays:
    """Random inputs; token ids begin with one that is no end, and hold an end."""
    draw = np.random.default_rng(seed)
    most = plan.bounds.get("tokens", (0, tokens))[1]
    sizes = {
        "batch": batch,
        "tokens": min(tokens, most) if seed == 0 else min(tokens, most // 2),
        "height": height,
        "width": width,
        "8*latent_height": 8 * height,
        "8*latent_width": 8 * width,
    }
    found: Arrays = {}
    for name, (_, dims) in plan.inputs.items():
        shape = [sizes[d] if isinstance(d, str) else d for d in dims]
        if name == "input_ids":
            found[name] = draw.integers(0, config["vocab_size"] - 1, shape)
            found[name][:, shape[1] // 2] = config.get("eos_token_id", 0)
        elif name == "timestep":
            found[name] = draw.uniform(0, 999, shape).astype(np.float32)
        elif name == "time_ids":
            found[name] = draw.integers(0, 1024, shape).astype(np.float32)
        else:
            found[name] = draw.standard_normal(shape, dtype=np.float32)
    return found


def _too_big(weights: Mapping[str, Weight]) -> str | None:
    """Why a network cannot be checked here: torch and ONNX Runtime each hold float32 copies."""
    count = sum(int(np.prod(w.tensor.shape)) for w in weights.values())
    need, free = 12 * count + (1 << 30), available_memory()
    if free is None or need <= free:
        return None
    return f"not checked: needs {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"


def available_memory() -> int | None:
    """Bytes that may still be taken, by the kernel's estimate."""
    for line in _lines(MEMORY):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return

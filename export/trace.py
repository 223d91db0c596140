"""One torch module to one ONNX graph at opset 23, its weights never in memory.

Modules are built from their configs under fake tensors, which have shapes and no bytes, and traced
in float32. In the graph that comes out every parameter is an input, after the true inputs and named
in the published spelling: what no pass knows the value of, none can fold or merge.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.export.names import published
from diffusion_rt.export.precision import OPSET
from diffusion_rt.export.symbols import rename_symbols

CAUSAL = "diffusion_rt_causal"
TEXT_CONFIG = (  # what of a text encoder's config matters to its graph
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "eos_token_id",
)
_SYMBOL = r"\b[a-z]\d+\b"  # as the tracer spells them

Config = Mapping[str, Any]
Dims = tuple[int | str, ...]  # a symbol is a name, or a multiple of one such as "8*latent_height"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a network's graph is traced: its module, and what goes in and comes out.

    `bounds` are the sizes that symbols may have while tracing, which only keeps the tracer from
    asking about degenerate ones; `rename` gives symbols and sizes derived from them their names.
    """

    network: str  # of the checkpoint
    module: Callable[[Config], nn.Module]  # of one submodule `model`, the network itself
    inputs: Mapping[str, tuple[torch.dtype, Dims]]
    outputs: tuple[str, ...]
    bounds: Mapping[str, tuple[int, int]]
    rename: Mapping[str, str] = field(default_factory=dict)

    def published(self, module: nn.Module) -> dict[str, str]:
        """The published name of each parameter of `module`, by the name it has there."""
        return {
            name: published(self.network, name.removeprefix("model."))
            for name, _ in module.named_parameters()
        }


@dataclass(frozen=True, slots=True)
class Traceable:
    """A network built under fake tensors."""

    plan: Plan
    config: Config
    module: nn.Module
    mode: FakeTensorMode

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by its published name."""
        names = self.plan.published(self.module)
        return {names[name]: tuple(p.shape) for name, p in self.module.named_parameters()}


def build(plan: Plan, config: Config) -> Traceable:
    """The network that `config` describes. Raises BadInput where torch cannot build one of it."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    try:
        with _quiet(), mode:
            module = plan.module(config).eval().requires_grad_(False)
    except Exception as error:  # whatever a stranger's config makes a constructor raise
        what = f"{plan.network}/config.json"
        raise BadInput(f"{what}: no network can be built of it: {_reason(error)}") from None
    return Traceable(plan, config, module, mode)


def trace(network: Traceable) -> ir.Model:
    """The float32 graph of a network; see the module's docstring for its form."""
    plan = network.plan
    symbols = {name: Dim(name, min=low, max=high) for name, (low, high) in plan.bounds.items()}
    try:
        with _quiet(), network.mode:
            program = torch.export.export(
                network.module,
                tuple(_example(kind, dims, plan) for kind, dims in plan.inputs.values()),
                dynamic_shapes=tuple(_symbolic(dims, symbols) for _, dims in plan.inputs.values()),
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verify=False,
                verbose=False,
            )
    except Exception as error:  # torch's own errors run over many lines
        raise Fault(f"{plan.network}: torch cannot trace this network: {_reason(error)}") from error
    assert exported is not None
    model = exported.model
    _name_nodes(model.graph)
    ClearMetadataAndDocStringPass()(model)
    _name_inputs_and_outputs(model.graph, plan)
    _parameters_to_inputs(model.graph, plan.network)
    _name_symbols(model.graph, plan)
    return model


def text_encoder(network: str, positions: int, *, pooled: bool) -> Plan:
    """A CLIP text encoder that gives every layer's output, and the projected pooled text."""

    def module(config: Config) -> nn.Module:
        kind = CLIPTextModelWithProjection if pooled else CLIPTextModel
        known = {name: config[name] for name in TEXT_CONFIG if name in config}
        settings = CLIPTextConfig(**known, dtype="float32")
        return _TextEncoder(kind._from_config(settings, attn_implementation=CAUSAL), pooled=pooled)  # type: ignore[no-untyped-call]

    return Plan(
        network=network,
        module=module,
        inputs={"input_ids": (torch.int64, ("batch", "tokens"))},
        outputs=("hidden_states", "text_embeds")[: 1 + pooled],
        bounds={"batch": (1, 1024), "tokens": (2, positions)},
    )


def unet(channels: int, context_width: int, pooled_width: int) -> Plan:
    """The whole UNet; `unet_parts` cuts it."""
    real = torch.float32
    return Plan(
        network="unet",
        module=lambda config: _Unet(_built(UNet2DConditionModel, config)),
        inputs={
            "latent": (real, ("batch", channels, "height", "width")),
            "timestep": (real, ("batch",)),
            "context": (real, ("batch", "tokens", context_width)),
            "text_embeds": (real, ("batch", pooled_width)),
            "time_ids": (real, ("batch", 6)),
        },
        outputs=("prediction",),
        bounds={
            "batch": (1, 63),  # diffusers copies to contiguous memory from 64 on, nothing more
            "tokens": (2, 1 << 20),
            "height": (8, 4096),
            "width": (8, 4096),
        },
    )


def vae_decoder(channels: int) -> Plan:
    """Unscaled latents to pictures of about -1 to 1."""
    return Plan(
        network="vae",
        module=lambda config: _Decoder(_built(AutoencoderKL, config)),
        inputs={"latent": (torch.float32, ("batch", channels, "height", "width"))},
        outputs=("image",),
        bounds={"batch": (1, 63), "height": (8, 4096), "width": (8, 4096)},
        rename={"8*height": "image_height", "8*width": "image_width"},
    )


def vae_encoder() -> Plan:
    """Pictures to mean and log-variance of their latents."""
    return Plan(
        network="vae",
        module=lambda config: _Encoder(_built(AutoencoderKL, config)),
        inputs={"image": (torch.float32, ("batch", 3, "8*latent_height", "8*latent_width"))},
        outputs=("mean", "logvar"),
        bounds={"batch": (1, 63), "latent_height": (8, 4096), "latent_width": (8, 4096)},
        rename={"8*latent_height": "height", "8*latent_width": "width"},
    )


class _TextEncoder(nn.Module):
    def __init__(self, model: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.model(input_ids=input_ids, output_hidden_states=True)
        hidden = torch.stack(found.hidden_states)
        return (hidden, found.text_embeds) if self.pooled else hidden


class _Unet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # diffusers forwards the size of the skip connection to each upsampling only if a side of
        # the latent is no multiple of 2**num_upsamplers. With a power that no side reaches it
        # always does, and one graph serves sizes of any remainder.
        model.num_upsamplers = 62  # type: ignore[assignment]
        self.model = model

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        context: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        found: tuple[Tensor] = self.model(
            latent, timestep, context, added_cond_kwargs=added, return_dict=False
        )
        return found[0]


class _Decoder(nn.Module):
    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor) -> Tensor:
        found: tuple[Tensor] = self.model.decode(latent, return_dict=False)
        return found[0]


class _Encoder(nn.Module):
    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(image, return_dict=False)[0]
        return posterior.mean, posterior.logvar


def _causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """CLIP's attention as one causal `Attention`, where transformers would trace a mask."""
    found = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling
    )
    return found.transpose(1, 2), None


AttentionInterface.register(CAUSAL, _causal_attention)
AttentionMaskInterface.register(CAUSAL, lambda *args, **kwargs: None)


def _built(kind: Any, config: Config) -> Any:
    return kind.from_config(dict(config))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _example(kind: torch.dtype, dims: Dims, plan: Plan) -> Tensor:
    """A fake input of sizes that share no factor, so that none is taken for another."""
    most = plan.bounds.get("tokens", (0, 0))[1]
    sizes = {"batch": 2, "tokens": min(7, most), "height": 17, "width": 23}
    sizes |= {"8*latent_height": 8 * 17, "8*latent_width": 8 * 23}
    return torch.empty([sizes[d] if isinstance(d, str) else d for d in dims], dtype=kind)


def _symbolic(dims: Dims, symbols: Mapping[str, Any]) -> dict[int, Any]:
    return {
        axis: 8 * symbols[dim.removeprefix("8*")] if dim.startswith("8*") else symbols[dim]
        for axis, dim in enumerate(dims)
        if isinstance(dim, str)
    }


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node by the module it comes from, for profiles and error messages."""
    seen: dict[str, int] = {}
    for node in graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        path = re.findall(r"'(model\.[^']*)'", scopes)
        name = f"{path[-1].removeprefix('model.')}/{node.op_type}" if path else node.op_type
        seen[name] = seen.get(name, 0) + 1
        node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name


def _name_inputs_and_outputs(graph: ir.Graph, plan: Plan) -> None:
    for value, name in zip(graph.inputs, plan.inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, plan.outputs, strict=True):
        value.name = name


def _parameters_to_inputs(graph: ir.Graph, component: str) -> None:
    for value in list(graph.initializers.values()):
        assert value.name is not None
        del graph.initializers[value.name]
        name = value.name.removeprefix("model.")
        if name.rpartition(".")[2] == "position_ids":  # a buffer, which no file needs to hold
            assert value.shape is not None
            count = value.shape.numpy()[1]
            value.const_value = ir.tensor(np.arange(count, dtype=np.int64)[None])
            graph.initializers.add(value)
            continue
        value.name = published(component, name)
        value.const_value = None
        graph.inputs.append(value)


def _name_symbols(graph: ir.Graph, plan: Plan) -> None:
    """Replace the tracer's symbols by ours in the shape of every value."""
    names: dict[str, str] = {}
    for value, (_, dims) in zip(graph.inputs, plan.inputs.values(), strict=False):
        assert value.shape is not None
        for found, dim in zip(value.shape, dims, strict=True):
            if isinstance(dim, str):
                symbol = re.search(_SYMBOL, str(found))
                assert symbol is not None
                names[symbol[0]] = dim.removeprefix("8*")

    def renamed(text: str) -> str:
        text = re.sub(_SYMBOL, lambda match: names[match[0]], text)
        return plan.rename.get(text, text)

    rename_symbols(graph, renamed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about optional packages from standard error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

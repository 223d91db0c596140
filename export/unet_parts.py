"""Where the UNet is cut: what a prompt, a timestep and a step of denoising change."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from diffusion_rt.export.split import split
from diffusion_rt.export.symbols import rename_symbols

PARTS = {
    "unet_prompt": ("context", "text_embeds", "time_ids"),
    "unet_timestep": ("timestep",),
    "unet_step": ("latent",),
}
_ENDINGS = {".to_k": ".key", ".to_v": ".value"}


def unet_parts(whole: ir.Model) -> dict[str, ir.Model]:
    """`unet_prompt`, `unet_timestep` and `unet_step`, whose inputs and outputs fit each other.

    Keys and values of each cross attention and the projections of each resnet are named after
    their modules, such as `mid_block.attentions.0.transformer_blocks.0.attn2.key`. Raises
    ValueError where the UNet does not come apart so.
    """
    parts = split(whole, PARTS, _name)
    timesteps = {"batch": "n"}  # evaluations times batch
    rename_symbols(parts["unet_timestep"].graph, lambda symbol: timesteps.get(symbol, symbol))
    _check(parts)
    return parts


def _check(parts: Mapping[str, ir.Model]) -> None:
    """Hold the parts against their signatures; ValueError where they are others."""
    given = {name: _names(model.graph.inputs) for name, model in parts.items()}
    made = {name: _names(model.graph.outputs) for name, model in parts.items()}
    cross = {n for n in made["unet_prompt"] if n.endswith((".attn2.key", ".attn2.value"))}
    resnets = {name for name in made["unet_timestep"] if name.endswith(".time_emb_proj")}
    expected = (
        (given["unet_prompt"], {"context", "text_embeds", "time_ids"}),
        (made["unet_prompt"], cross | {"added"}),
        (given["unet_timestep"], {"timestep", "added"}),
        (made["unet_timestep"], resnets),
        (given["unet_step"], {"latent"} | cross | resnets),
        (made["unet_step"], {"prediction"}),
    )
    for found, wanted in expected:
        if found != wanted:
            raise ValueError(f"the UNet comes apart otherwise: {sorted(found ^ wanted)[:4]}")


def _names(values: Sequence[ir.Value]) -> set[str]:
    """Names without those of parameters, which end in weight or bias."""
    names = {value.name or "" for value in values}
    return {name for name in names if name.rpartition(".")[2] not in ("weight", "bias")}


def _name(value: ir.Value) -> str:
    """The module whose parameter was last applied on the way to `value`."""
    seen = value
    while True:
        maker = seen.producer()
        assert maker is not None, f"{value.name} depends on no parameter"
        sources = [source for source in maker.inputs if source is not None]
        for source in sources:
            if parameter := _parameter(source):
                module = parameter.rpartition(".")[0]
                if module.startswith("add_embedding."):
                    return "added"
                for ending, word in _ENDINGS.items():
                    if module.endswith(ending):
                        return module.removesuffix(ending) + word
                return module
        seen = sources[0]


def _parameter(value: ir.Value) -> str | None:
    """The name of the parameter that `value` is, perhaps transposed."""
    maker = value.producer()
    if maker is not None and maker.op_type == "Transpose" and maker.inputs[0] is not None:
        value = maker.inputs[0]
    return value.name if value.is_graph_input() and "." in (value.name or "") else None

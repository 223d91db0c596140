"""How the weights of a checkpoint are called, in each age, and which parameter each of them is.

The published spelling is ours: `text_model.…` in both text encoders, as LoRAs say too, and
`to_q`, `to_k`, `to_v`, `to_out.0` in the VAE's attention.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.safetensors_file import StoredTensor

FLOATS = ("F32", "F16", "BF16")
BUFFERS = ("position_ids",)  # stored by old text encoders, the same in every file

_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def published(component: str, name: str) -> str:
    """The published spelling of a weight of `component`, from any age's."""
    if component.startswith("text_encoder"):
        whole = name.startswith(("text_model.", "text_projection."))
        return name if whole else f"text_model.{name}"
    if component == "vae":
        return re.sub(
            r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda m: f"{m[1]}.{_OLD_ATTENTION[m[2]]}.",
            name,
        )
    return name


@dataclass(frozen=True, slots=True)
class Weight:
    """Where the checkpoint keeps one tensor: a file of the folder and a place in it."""

    file: str
    tensor: StoredTensor


def bind(
    component: str,
    parameters: Mapping[str, Sequence[int]],
    stored: Mapping[str, Weight],
) -> tuple[dict[str, Weight], list[str]]:
    """Which stored tensor each parameter (published name -> shape) is, and which are left over.

    A matrix may be stored as a 1x1 convolution, or the other way round: the bytes are the same.
    Raises BadInput where a parameter has no tensor or two, or one of another shape or kind.
    """
    bound: dict[str, Weight] = {}
    left: list[str] = []
    spelled: dict[str, str] = {}
    for name, weight in stored.items():
        parameter = published(component, name)
        if parameter not in parameters:
            left.append(name)
            continue
        place = f"{weight.file}: tensor {shown(name)}"
        if parameter in bound:
            raise BadInput(
                f"{place} is the parameter {parameter}, and so is {shown(spelled[parameter])}; "
                "remove one of them"
            )
        if weight.tensor.dtype not in FLOATS:
            raise BadInput(
                f"{place}: dtype {weight.tensor.dtype}, wants {', '.join(FLOATS)}; "
                "convert the checkpoint to float16 with diffusers"
            )
        wanted = tuple(parameters[parameter])
        if _squeezed(weight.tensor.shape) != _squeezed(wanted):
            raise BadInput(
                f"{place}: shape {list(weight.tensor.shape)}, the config of {component} wants "
                f"{list(wanted)}; config.json and weights are of different models"
            )
        bound[parameter], spelled[parameter] = weight, name
    if missing := [name for name in parameters if name not in bound]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(
            f"{component}: the checkpoint has no tensor for {missing[0]}{more}; "
            "download it again, or check that config.json belongs to it"
        )
    return bound, [name for name in left if name.rpartition(".")[2] not in BUFFERS]


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the trailing ones of a 1x1 convolution."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2] == shape[3] == 1 else tuple(shape)

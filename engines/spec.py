"""What a tensor of an exported graph looks like, as every folder above agrees on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from diffusion_rt.engines.typed_json import Between, Matching, Symbol

Dtype = Literal["float32", "float16", "int64"]
Precision = Literal["float32", "float16"]
Size = Annotated[int, Between(1, 1 << 31)]
Name = Annotated[str, Matching(r"[A-Za-z0-9_./:-]{1,200}", "a tensor's name")]

# The graphs of a model folder, in the order a prompt meets them.
GRAPHS = (
    "text_encoder",
    "text_encoder_2",
    "unet_prompt",
    "unet_timestep",
    "unet_step",
    "vae_decoder",
    "vae_encoder",
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; a dimension is a size or a symbol's name."""

    name: Name
    dtype: Dtype
    shape: tuple[Size | Symbol, ...]

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbol replaced by its size; KeyError names a symbol left out."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)

"""How engines are built: the builder's settings, and what is changed in a graph before."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.spec import Precision
from diffusion_rt.engines.trt.library import version_of
from diffusion_rt.engines.typed_json import Between, Matching

Arithmetic = Literal["float32", "float16", "bfloat16"]
Attention = Literal["tensorrt", "plugin"]
Compatibility = Literal["none", "same", "ampere+"]
Tiling = Literal["none", "fast", "moderate", "full"]
VaePrecision = Literal["float32", "bfloat16"]

# Knobs of TensorRT's compiler as `IBuilderConfig.build_route` takes them. An empty text is none.
_ROUTE = re.compile(r"(-[A-Za-z0-9_:.]+=[A-Za-z0-9_.,-]+)( -[A-Za-z0-9_:.]+=[A-Za-z0-9_.,-]+)*")
MAX_ROUTE = 2000  # characters
MAX_STREAMS = 16
WITH_PLUGIN = ("unet_step",)  # graphs whose attention our kernel can take
WIDE_ATTENTION_FROM = (11, 3)  # the first TensorRT whose fused attention can sum in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderOptions:
    """Settings of TensorRT's builder. What they cannot be raises BadInput.

    - `optimization_level`: 0 builds fastest, 5 searches longest; 3 is TensorRT's default.
    - `workspace_bytes`: the most scratch a tactic may use; None leaves it to TensorRT.
    - `profile_memory`: how much memory for weights in a layout of its own each profile after the
      first may take, as a share of all weights. 0 shares one layout; what TensorRT would do by
      itself, 1, can take as many copies of the weights as there are sizes.
    - `tiling`: how long it searches for operations to keep in the L2 cache.
    - `auxiliary_streams`: branches that may run side by side; 0 for none, None as it sees fit.
    - `compatibility`: `none` ties a plan to this model of GPU, `same` to its compute capability,
      `ampere+` to none from Ampere on, at a cost in speed.
    - `version_compatible`: later TensorRT of the same major version runs the plan too.
    - `stripped`: the plan holds no weights; they come from the checkpoint when it is loaded.
    - `tf32`: float32 products on tensor cores, with 10 bits of mantissa, as TensorRT has it.
    - `build_route`: knobs of the compiler, such as `-conv_use_long_w=off`.
    """

    optimization_level: Annotated[int, Between(0, 5)] = 3
    workspace_bytes: Annotated[int, Between(1 << 20, 1 << 42)] | None = None
    profile_memory: Annotated[float, Between(0.0, 1.0)] = 0.0
    tiling: Tiling = "none"
    auxiliary_streams: Annotated[int, Between(0, MAX_STREAMS)] | None = None
    compatibility: Compatibility = "none"
    version_compatible: bool = False
    stripped: bool = False
    tf32: bool = True
    build_route: Annotated[str, Matching(rf"({_ROUTE.pattern})?", "-name=value knobs")] = ""

    def __post_init__(self) -> None:
        """Check what types do not say."""
        _check_number("optimization level", self.optimization_level, 0, 5)
        if self.workspace_bytes is not None:
            _check_number("workspace", self.workspace_bytes, 1 << 20, 1 << 42)
        share = self.profile_memory
        if type(share) is not float or not 0.0 <= share <= 1.0:
            raise BadInput(f"memory of each profile {shown(share)}, wants a share from 0.0 to 1.0")
        if self.auxiliary_streams is not None:
            _check_number("auxiliary streams", self.auxiliary_streams, 0, MAX_STREAMS)
        _check_word("tiling", self.tiling, ("none", "fast", "moderate", "full"))
        _check_word("hardware compatibility", self.compatibility, ("none", "same", "ampere+"))
        route = self.build_route
        if route and (len(route) > MAX_ROUTE or not _ROUTE.fullmatch(route)):
            raise BadInput(
                f"build route {shown(route)}, wants knobs such as -conv_use_long_w=off, one blank "
                "between two"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is changed in one ONNX graph before TensorRT parses it.

    - `arithmetic`: that of the graph; `bfloat16` starts from the float32 graph.
    - `attention`: TensorRT's own, or our kernel as a plugin.
    - `wide_attention`: queries, keys and values go in as float32, so that TensorRT's fused
      attention sums in float32 (from 11.3 on).
    """

    arithmetic: Arithmetic
    attention: Attention = "tensorrt"
    wide_attention: bool = False

    @property
    def source(self) -> Precision:
        """The precision of the exported graph that is edited."""
        return "float16" if self.arithmetic == "float16" else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All that can be chosen of a build. What cannot be built raises BadInput.

    - `precision`: arithmetic of the UNet and the text encoders.
    - `vae_precision`: of the VAE, which overflows in float16.
    - `wide_attention`: see `Edits`; for float16 graphs. None takes it where TensorRT has it: else
      its fused attention adds up the softmax in float16, which no longer counts single keys from
      2,048 on and overflows at 65,504, and SDXL has 4,096 at 1024x1024. It costs speed.
    - `attention`: graph -> whose attention it uses; a graph that is not named uses TensorRT's.
    """

    precision: Precision = "float16"
    vae_precision: VaePrecision = "bfloat16"
    wide_attention: bool | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)
    builder: BuilderOptions = field(default_factory=BuilderOptions)

    def __post_init__(self) -> None:
        """Check what types do not say."""
        _check_word("precision", self.precision, ("float16", "float32"))
        _check_word("VAE precision", self.vae_precision, ("float32", "bfloat16"))
        for graph, choice in self.attention.items():
            _check_word(f"attention of {graph}", choice, ("tensorrt", "plugin"))
            if choice == "plugin" and graph not in WITH_PLUGIN:
                raise BadInput(
                    f"attention plugin for {shown(graph)}: it serves {', '.join(WITH_PLUGIN)}; "
                    "leave the others to tensorrt"
                )
        if "plugin" in self.attention.values():
            if self.precision != "float16":
                raise BadInput("the attention plugin computes in float16; take --precision float16")
            if self.wide_attention:
                raise BadInput(
                    "the attention plugin sums in float32 as it is; leave --float32-attention out"
                )

    def settled(self, tensorrt: str) -> "Options":
        """The same, with what they leave open chosen for a version of TensorRT."""
        if self.wide_attention is not None:
            return self
        can = version_of(tensorrt) >= WIDE_ATTENTION_FROM
        return replace(self, wide_attention=can and "plugin" not in self.attention.values())

    def edits(self, graph: str) -> Edits:
        """What is changed in one graph (a name of `spec.GRAPHS`)."""
        if graph.startswith("vae_"):
            return Edits(arithmetic=self.vae_precision)
        attention = self.attention.get(graph, "tensorrt")
        halves = self.precision == "float16" and attention == "tensorrt"
        wide = bool(self.wide_attention) and halves
        return Edits(arithmetic=self.precision, attention=attention, wide_attention=wide)


def _check_number(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise BadInput(f"{what} {shown(value)}, wants {low} to {high}")


def _check_word(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"{what} {shown(value)}, wants one of {', '.join(known)}")

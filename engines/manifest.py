"""What `manifest.json` says: all that the runtime needs to know of a model, and of which files it is made.

Written by export, read by everything after it. A reader never guesses from file names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffusion_rt.engines.spec import Precision, TensorSpec

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the folder: its size in bytes and the sha256 of all of it.

    `table` is the sha256 of a safetensors file's first 8 + header-length bytes, which hold the names,
    types and places of its tensors; None for other files. It lets gigabytes be checked in a moment.
    """

    size: int
    sha256: str
    table: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVariant:
    """One ONNX file: a graph for one precision of arithmetic."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderRecord:
    """One text encoder and how its prompts are padded.

    `graph` has the input `input_ids` [batch, tokens] int64 and the output `hidden_states`
    [layers + 1, batch, tokens, width] (the embeddings, then each layer's output, none normalised
    after the last layer); where `pooled`, also `text_embeds` [batch, projection].
    """

    graph: str
    tokenizer: str  # folder inside the model folder
    max_length: int  # tokens of one chunk, start and end included
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    layers: int
    width: int
    pooled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """The noise schedule a model was trained with; names as in diffusers' scheduler configs."""

    scheduler: str  # the checkpoint's own scheduler class, such as EulerDiscreteScheduler
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    timestep_spacing: Literal["leading", "linspace", "trailing"]
    steps_offset: int
    rescale_betas_zero_snr: bool
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool = True
    interpolation_type: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    use_karras_sigmas: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetRecord:
    """The shape of the UNet, level by level: what its memory need is reckoned from.

    `heads` is 0 at a level without attention; `channels` are diffusers' `block_out_channels`.
    """

    in_channels: int
    channels: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecord:
    """Between latents and pixels.

    Latents divided by `scaling_factor` (or, where mean and std are given, z * std / scaling_factor +
    mean, per channel) enter `vae_decoder`: `latent` [batch, channels, height, width] -> `image` [batch,
    3, height * factor, width * factor], about -1 to 1. `vae_encoder`: `image` -> `mean` and `logvar`
    of the posterior, unscaled.
    """

    channels: int
    factor: int  # pixels per latent, each way: 8
    scaling_factor: float
    shift_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    force_upcast: bool
    decoder_channels: tuple[int, ...]  # diffusers' `block_out_channels`, for the memory need


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request means where it says nothing."""

    width: int
    height: int
    steps: int
    guidance_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `manifest.json`, version 1."""

    name: str
    family: Literal["sdxl"]
    schedule: ScheduleRecord
    text_encoders: tuple[TextEncoderRecord, ...]
    unet: UnetRecord
    vae: VaeRecord
    force_zeros_for_empty_prompt: bool
    defaults: Defaults
    graphs: Mapping[str, Mapping[Precision, GraphVariant]]  # spec.GRAPHS -> precision -> file
    files: Mapping[str, FileRecord]  # relative path -> what it must be
    exporter: Mapping[str, str]  # package -> version

"""What `manifest.json` says: all that the runtime needs to know of a model, and its files.

Written by export, read by everything after it. A reader never guesses from file names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes, writing
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.spec import GRAPHS, Precision, TensorSpec
from diffusion_rt.engines.typed_json import (
    Between,
    Line,
    RelativePath,
    Sha256,
    Word,
    decode,
    encode,
)

VERSION = 1
NAME = "manifest.json"
MAX_BYTES = 4_000_000

Count = Annotated[int, Between(1, 1 << 20)]
TokenId = Annotated[int, Between(0, 1 << 24)]
Beta = Annotated[float, Between(0.0, 1.0)]
Factor = Annotated[float, Between(1e-6, 1e6)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the folder: its size in bytes and the sha256 of all of it.

    `table` is the sha256 of a safetensors file's first 8 + header-length bytes, which hold the
    names, types and places of its tensors; None for other files. It lets gigabytes be checked in
    a moment.
    """

    size: Annotated[int, Between(0, 1 << 48)]
    sha256: Sha256
    table: Sha256 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVariant:
    """One ONNX file: a graph for one precision of arithmetic."""

    file: RelativePath
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderRecord:
    """One text encoder and how its prompts are padded.

    `graph` has the input `input_ids` [batch, tokens] int64 and the output `hidden_states`
    [layers + 1, batch, tokens, width] (the embeddings, then each layer's output, none normalised
    after the last layer); where `pooled`, also `text_embeds` [batch, projection].
    """

    graph: Word
    tokenizer: RelativePath  # folder inside the model folder
    max_length: Annotated[int, Between(3, 4096)]  # tokens of one chunk, start and end included
    bos_token_id: TokenId
    eos_token_id: TokenId
    pad_token_id: TokenId
    layers: Count
    width: Count
    pooled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """The noise schedule a model was trained with; names as in diffusers' scheduler configs."""

    scheduler: Word  # the checkpoint's own scheduler class, such as EulerDiscreteScheduler
    num_train_timesteps: Count
    beta_start: Beta
    beta_end: Beta
    beta_schedule: Word
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    timestep_spacing: Literal["leading", "linspace", "trailing"]
    steps_offset: Annotated[int, Between(0, 1 << 20)]
    rescale_betas_zero_snr: bool
    final_sigmas_type: Word = "zero"
    set_alpha_to_one: bool = True
    interpolation_type: Word = "linear"
    trained_betas: tuple[Beta, ...] | None = None
    use_karras_sigmas: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetRecord:
    """The shape of the UNet, level by level: what its memory need is reckoned from.

    `heads` is 0 at a level without attention; `channels` are diffusers' `block_out_channels`.
    """

    in_channels: Count
    channels: tuple[Count, ...]
    heads: tuple[Annotated[int, Between(0, 1 << 20)], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecord:
    """Between latents and pixels.

    Latents divided by `scaling_factor` (or, where mean and std are given, z * std / scaling_factor
    + mean, per channel) enter `vae_decoder`: `latent` [batch, channels, height, width] -> `image`
    [batch, 3, height * factor, width * factor], about -1 to 1. `vae_encoder`: `image` -> `mean`
    and `logvar` of the posterior, unscaled.
    """

    channels: Count
    factor: Annotated[int, Between(1, 64)]  # pixels per latent, each way: 8
    scaling_factor: Factor
    shift_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    force_upcast: bool
    decoder_channels: tuple[Count, ...]  # diffusers' `block_out_channels`, for the memory need


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request means where it says nothing."""

    width: Annotated[int, Between(8, 1 << 15)]
    height: Annotated[int, Between(8, 1 << 15)]
    steps: Annotated[int, Between(1, 1000)]
    guidance_scale: Annotated[float, Between(0.0, 100.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `manifest.json`, version 1."""

    name: Line
    family: Literal["sdxl"]
    schedule: ScheduleRecord
    text_encoders: tuple[TextEncoderRecord, ...]
    unet: UnetRecord
    vae: VaeRecord
    force_zeros_for_empty_prompt: bool
    defaults: Defaults
    graphs: Mapping[str, Mapping[Precision, GraphVariant]]  # spec.GRAPHS -> precision -> file
    files: Mapping[RelativePath, FileRecord]  # relative path -> what it must be
    exporter: Mapping[Word, Line]  # package -> version


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, whole or not at all.

    Raises BadInput where the manifest would not read back as it is.
    """
    with writing(folder / NAME) as file:
        file.write(manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.json`; BadInput where it would not read back as it is."""
    content = json.dumps({"version": VERSION, **encode(manifest)}, indent=1).encode() + b"\n"
    if parse_manifest(content, NAME) != manifest:
        raise BadInput(f"{NAME}: a value that JSON cannot hold exactly, such as a list for a tuple")
    return content


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder; BadInput names the file and the place in it that is wrong."""
    content = read_bytes(folder / NAME, MAX_BYTES, follow_links=False)
    return parse_manifest(content, str(folder / NAME))


def parse_manifest(content: bytes, what: str) -> Manifest:
    """The manifest that `content` spells; BadInput, beginning with `what`, where it is broken."""
    fields = strict_json.parse(content, what)
    if not isinstance(fields, dict) or "version" not in fields:
        raise BadInput(f"{what}: not a manifest (no version); export the model again")
    version = fields.pop("version")
    if type(version) is int and version > VERSION:
        raise BadInput(
            f"{what}: written by a newer diffusion-rt (version {shown(version)}; this one reads "
            f"{VERSION}): upgrade, or export again"
        )
    if version != VERSION or type(version) is not int:
        raise BadInput(f"{what}: version: got {shown(version)}, wants {VERSION}; export again")
    try:
        manifest: Manifest = decode(Manifest, fields, "")
        _check_references(manifest)
    except BadInput as wrong:
        raise BadInput(f"{what}: {wrong}; export the model again") from None
    return manifest


def _check_references(manifest: Manifest) -> None:
    """What one part of a manifest says of another must hold."""
    for graph, variants in manifest.graphs.items():
        if graph not in GRAPHS:
            raise BadInput(f"graphs: got {shown(graph)}, wants one of {', '.join(GRAPHS)}")
        if not variants:
            raise BadInput(f"graphs.{graph}: no precision, wants {get_args(Precision)[0]}")
        for precision, variant in variants.items():
            if variant.file not in manifest.files:
                place = f"graphs.{graph}.{precision}.file"
                raise BadInput(f"{place}: {shown(variant.file)} is not among the files")
    encoders = tuple(encoder.graph for encoder in manifest.text_encoders)
    for graph in (*encoders, "unet_prompt", "unet_timestep", "unet_step", "vae_decoder"):
        if graph not in manifest.graphs:
            raise BadInput(f"graphs.{graph}: missing")
    for i, encoder in enumerate(manifest.text_encoders):
        if not any(file.startswith(f"{encoder.tokenizer}/") for file in manifest.files):
            place = f"text_encoders[{i}].tokenizer"
            raise BadInput(f"{place}: no file in {shown(encoder.tokenizer)} is among the files")
    if not manifest.text_encoders:
        raise BadInput("text_encoders: got none, wants one or two")
    if len(manifest.unet.heads) != len(manifest.unet.channels):
        raise BadInput("unet.heads: wants one number for each of unet.channels")
    for name in ("latents_mean", "latents_std"):
        values = getattr(manifest.vae, name)
        if values is not None and len(values) != manifest.vae.channels:
            raise BadInput(f"vae.{name}: {len(values)} values, wants {manifest.vae.channels}")

"""A checkpoint in diffusers layout, read under suspicion and without its weights.

Here it is settled that the folder is an SDXL base model whose files are all there and all safe:
whatever else it may be is refused by name, with the way out.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.safetensors_file import SafetensorsTable, read_table
from diffusion_rt.export.names import Weight

MAX_JSON = 16 << 20  # bytes; a tokenizer.json has 3.6 MB
INDEX = "model_index.json"
GENERATION = "generation_config.json"
SCHEDULER = "scheduler/scheduler_config.json"

# Networks: the classes that may fill the place, and how their weights are called.
NETWORKS = {
    "text_encoder": ("CLIPTextModel", "model"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "model"),
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "added_tokens.json",
)
VARIANT = re.compile(r"[A-Za-z0-9_]{1,40}")
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

OTHER_FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1 or 2",
    "StableDiffusionInpaintPipeline": "Stable Diffusion 1 or 2 for inpainting",
    "StableDiffusionXLImg2ImgPipeline": "the SDXL refiner or an image-to-image pipeline",
    "StableDiffusionXLInpaintPipeline": "SDXL for inpainting",
    "StableDiffusionXLInstructPix2PixPipeline": "SDXL InstructPix2Pix",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "FLUX",
}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One component with weights: its config, and where each stored tensor lies."""

    name: str
    config: Json
    weights: Mapping[str, Weight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that export reads of a checkpoint but the weights themselves."""

    folder: Path  # absolute
    name: str
    index: Json
    scheduler: Json
    generation: Json
    networks: Mapping[str, Network]
    files: tuple[str, ...]  # every file read, relative to the folder
    tables: Mapping[str, SafetensorsTable]  # of the files that hold weights


def open_checkpoint(
    path: Path, *, variant: str | None = None, name: str | None = None
) -> Checkpoint:
    """Read a checkpoint's configs and the tables of its weights; `name` is that of its folder.

    `variant` is a word in the names of the weights such as `fp16`; without it, names without a
    word come first, then fp16. Raises BadInput for what is no SDXL base checkpoint of safetensors.
    """
    if variant is not None and not VARIANT.fullmatch(variant):
        raise BadInput(f"variant {shown(variant)}: wants a word such as fp16")
    _check_folder(path)
    folder = path.resolve()
    reader = _Reader(folder)
    index = reader.json(INDEX)
    _check_pipeline(index, path)
    scheduler = reader.json(SCHEDULER)
    networks = {}
    for part, (kind, stem) in NETWORKS.items():
        _check_class(index, part, kind, path)
        config = reader.json(f"{part}/config.json")
        _check_sizes(config, f"{path / part}/config.json")
        weights = reader.weights(part, stem, variant)
        _check_depth(config, len(weights), f"{path / part}/config.json")
        networks[part] = Network(name=part, config=config, weights=weights)
    _check_family(networks, index, path)
    for tokenizer in TOKENIZERS.values():
        reader.tokenizer(tokenizer)
    generation = reader.json(GENERATION) if (folder / GENERATION).exists() else {}
    return Checkpoint(
        folder=folder,
        name=name or folder.name or "model",
        index=index,
        scheduler=scheduler,
        generation=generation,
        networks=networks,
        files=tuple(dict.fromkeys(reader.files)),
        tables=reader.tables,
    )


class _Reader:
    """Reads files of one folder and remembers which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self.tables: dict[str, SafetensorsTable] = {}

    def json(self, file: str) -> Json:
        """The object in a JSON file."""
        path = self.folder / file
        if not path.exists():
            raise BadInput(f"{self.folder}: no {file}; download the checkpoint again")
        found = strict_json.parse(read_bytes(path, MAX_JSON), str(path))
        if not isinstance(found, dict):
            raise BadInput(f"{path}: got {shown(found)}, wants an object")
        self.files.append(file)
        return found

    def tokenizer(self, name: str) -> None:
        """Note a tokenizer's files, of which the vocabulary must be one."""
        have = {file for file in TOKENIZER_FILES if (self.folder / name / file).exists()}
        if not ({"vocab.json", "merges.txt"} <= have or "tokenizer.json" in have):
            raise BadInput(
                f"{self.folder / name}: neither vocab.json with merges.txt nor tokenizer.json; "
                "download the checkpoint again"
            )
        if "tokenizer_config.json" not in have:
            raise BadInput(f"{self.folder / name}: no tokenizer_config.json; download it again")
        for file in TOKENIZER_FILES:
            if file in have:
                self.files.append(f"{name}/{file}")

    def weights(self, name: str, stem: str, variant: str | None) -> dict[str, Weight]:
        """Where each tensor of one network lies, from one file or from shards."""
        if not (self.folder / name).is_dir():
            raise BadInput(f"{self.folder}: no folder {name}; download the checkpoint again")
        for word in (variant,) if variant else (None, "fp16"):
            tag = f".{word}" if word else ""
            whole = f"{name}/{stem}{tag}.safetensors"
            index = f"{name}/{stem}.safetensors.index{tag}.json"
            if (self.folder / whole).exists():
                return self._tensors(whole)
            if (self.folder / index).exists():
                return self._shards(name, index)
        raise self._missing(name, variant)

    def _tensors(self, file: str) -> dict[str, Weight]:
        table = read_table(self.folder / file)
        self.files.append(file)
        self.tables[file] = table
        return {name: Weight(file, tensor) for name, tensor in table.tensors.items()}

    def _shards(self, name: str, index: str) -> dict[str, Weight]:
        """The tensors that an index places in shards, each where it says and nowhere else."""
        places = self.json(index).get("weight_map")
        path = self.folder / index
        if not isinstance(places, dict) or not places:
            raise BadInput(f"{path}: weight_map: wants names with files; download it again")
        for file in places.values():
            if not isinstance(file, str) or not SHARD.fullmatch(file):
                raise BadInput(f"{path}: got the file {shown(file)}, wants a name in its folder")
            if not file.endswith(".safetensors"):
                raise BadInput(
                    f"{path}: got the file {shown(file)}, wants safetensors; {self._way()}"
                )
        found: dict[str, Weight] = {}
        for file in sorted(set(places.values())):
            if not (self.folder / name / file).exists():
                raise BadInput(f"{path}: the shard {file} is not there; download it again")
            for tensor, weight in self._tensors(f"{name}/{file}").items():
                if places.get(tensor) != file:
                    raise BadInput(
                        f"{path}: tensor {shown(tensor)} is in {file}, the index says "
                        f"{shown(places.get(tensor))}; download it again"
                    )
                found[tensor] = weight
        if missing := [tensor for tensor in places if tensor not in found]:
            raise BadInput(
                f"{path}: tensor {shown(missing[0])} is not in {places[missing[0]]}; "
                "download it again"
            )
        return found

    def _missing(self, name: str, variant: str | None) -> BadInput:
        """What is wrong with a folder that has no weights of the names wanted."""
        folder = self.folder / name
        have = sorted(file.name for file in folder.iterdir())
        if words := [file for file in have if file.endswith(".safetensors")]:
            wanted = f"variant {variant}" if variant else "no variant, or fp16"
            return BadInput(
                f"{folder}: weights of {wanted} are not there, only {shown(words[0])}; "
                "say --variant NAME for the word in its name"
            )
        if pickles := [file for file in have if file.endswith(PICKLES)]:
            return BadInput(
                f"{folder / pickles[0]} holds pickles, wants safetensors; {self._way()}"
            )
        return BadInput(f"{folder}: no weights (safetensors); download the checkpoint again")

    def _way(self) -> str:
        return convert(
            f"from_pretrained({str(self.folder)!r}, use_safetensors=False)", self.folder.name
        )


def convert(load: str, name: str) -> str:
    """The command with which a user converts what is not safetensors."""
    code = (
        "from diffusers import StableDiffusionXLPipeline as P; "
        f"P.{load}.save_pretrained({name + '-safetensors'!r})"
    )
    return f"if you trust its source, convert it: python -c {shlex.quote(code)}"


def _check_folder(path: Path) -> None:
    """Refuse what is no folder in diffusers layout."""
    if path.is_file():
        stem = path.stem
        if path.suffix == ".safetensors":
            read_table(path)  # a pickle by that name is told as such
        elif path.suffix in PICKLES:
            raise BadInput(
                f"{path} holds pickles in one file, wants a folder in diffusers layout; "
                f"{convert(f'from_single_file({str(path)!r})', stem)}"
            )
        else:
            raise BadInput(f"{path}: a file, wants a folder in diffusers layout or a hub name")
        raise BadInput(
            f"{path} is a checkpoint in one file, wants a folder in diffusers layout; "
            f"{convert(f'from_single_file({str(path)!r})', stem)}"
        )
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; give a checkpoint's folder or a hub name")
    if not (path / INDEX).exists():
        raise BadInput(
            f"{path}: no {INDEX}, so no checkpoint in diffusers layout; "
            "give the folder that holds unet/, vae/ and text_encoder/"
        )


def _check_pipeline(index: Json, path: Path) -> None:
    kind = index.get("_class_name")
    if kind == "StableDiffusionXLPipeline":
        return
    what = OTHER_FAMILIES.get(kind) if isinstance(kind, str) else None
    raise BadInput(
        f"{path} is {what or 'a pipeline'} ({shown(kind)}); only SDXL base models "
        "(StableDiffusionXLPipeline) can be exported so far"
    )


def _check_class(index: Json, name: str, kind: str, path: Path) -> None:
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != kind:
        raise BadInput(
            f"{path / INDEX}: {name} is {shown(found)}, wants {kind}; "
            "only SDXL base models can be exported so far"
        )


def _check_sizes(config: Json, what: str) -> None:
    """Bounds on what a config may ask to be built, far over any real one."""

    def check(name: str, value: Any, depth: int) -> None:
        if isinstance(value, (list, dict)):
            if len(value) > 64 or depth > 3:
                raise BadInput(f"{what}: {name}: {shown(value)}, wants a short list")
            for item in value.values() if isinstance(value, dict) else value:
                check(name, item, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            most = 100 if "layers" in name else 1 << 20
            if abs(value) > most:
                raise BadInput(f"{what}: {name}: got {shown(value)}, wants at most {most}")

    if len(config) > 200:
        raise BadInput(f"{what}: {len(config)} entries, wants at most 200")
    for name, value in config.items():
        check(shown(name), value, 0)


def _check_depth(config: Json, tensors: int, what: str) -> None:
    """Refuse a network of more layers than the checkpoint has tensors, before it is built."""

    def most(name: str) -> int:
        found = config.get(name, 1)
        flat = [found]
        while any(isinstance(item, list) for item in flat):
            flat = [n for item in flat for n in (item if isinstance(item, list) else [item])]
        return max((n for n in flat if isinstance(n, int)), default=1)

    blocks = config.get("down_block_types")
    levels = len(blocks) if isinstance(blocks, list) else 1
    layers = most("num_hidden_layers") * most("layers_per_block") * levels
    if layers * most("transformer_layers_per_block") > tensors:
        raise BadInput(f"{what}: more layers than the checkpoint has tensors ({tensors})")


def _check_family(networks: Mapping[str, Network], index: Json, path: Path) -> None:
    """Refuse UNets that read more or other than SDXL base's, by the names people know."""
    unet = networks["unet"].config
    context = sum(_number(networks[name], "hidden_size") for name in TOKENIZERS)
    projection = _number(networks["text_encoder_2"], "projection_dim")
    sizes = _number(networks["unet"], "addition_time_embed_dim")
    channels = unet.get("in_channels", 4)
    wrong: str | None = None
    if channels != 4:
        known = {9: "inpainting", 8: "InstructPix2Pix"}.get(channels)
        wrong = f"in_channels {shown(channels)}" + (f", for {known}" if known else "") + ", wants 4"
    elif unet.get("addition_embed_type") != "text_time":
        wrong = f"addition_embed_type {shown(unet.get('addition_embed_type'))}, wants text_time"
    elif unet.get("time_cond_proj_dim") is not None:
        wrong = "time_cond_proj_dim (a guidance-distilled model such as LCM's full UNet)"
    elif index.get("requires_aesthetics_score") or (
        unet.get("projection_class_embeddings_input_dim") == 5 * sizes + projection
    ):
        wrong = "an aesthetic score as input (the SDXL refiner)"
    elif unet.get("projection_class_embeddings_input_dim") != 6 * sizes + projection:
        wrong = (
            f"projection_class_embeddings_input_dim "
            f"{shown(unet.get('projection_class_embeddings_input_dim'))}, wants "
            f"{6 * sizes + projection}"
        )
    elif unet.get("cross_attention_dim") != context:
        wrong = f"cross_attention_dim {shown(unet.get('cross_attention_dim'))}, wants {context}"
    else:
        for name in ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
            if unet.get(name) is not None:
                wrong = f"{name} {shown(unet[name])}, wants none"
    if wrong:
        raise BadInput(
            f"{path}: the UNet has {wrong}; only SDXL base models can be exported so far"
        )


def _number(network: Network, name: str) -> int:
    value = network.config.get(name)
    if type(value) is not int or value < 1:
        raise BadInput(f"{network.name}/config.json: {name}: got {shown(value)}, wants a size")
    return value

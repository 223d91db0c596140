"""Checkpoints of real architectures with generated weights, so that nobody has to download any.

Every weight depends on its name and the seed alone and none is zero. They are scaled by the number
of values that each output sums, so that activations keep their size through any depth and stay
finite in float16. Nothing is held in memory but one block.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.architectures import SD, Architecture, Config
from diffusion_rt.engines.artefact import writing
from diffusion_rt.engines.errors import BadInput

Progress = Callable[[int, int], None]  # weights written, of all

BLOCK = 1 << 22  # weights drawn; a tensor takes them from its own place on, round and round
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
DTYPES = {"float16": "F16", "float32": "F32"}


def make_checkpoint(
    folder: Path,
    architecture: Architecture,
    *,
    dtype: str = "float16",
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write a checkpoint in diffusers layout into an empty or new folder; how many weights it has.

    Raises BadInput where the folder holds anything, or has no room.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty; name a new folder for the generated checkpoint")
    a = architecture
    texts: dict[str, Callable[[Any], Any]] = {
        "CLIPTextModel": lambda c: CLIPTextModel(CLIPTextConfig(**c)),
        "CLIPTextModelWithProjection": lambda c: CLIPTextModelWithProjection(CLIPTextConfig(**c)),
    }
    networks: dict[str, tuple[Config, Callable[[Any], Any], str]] = {
        "unet": (a.unet, UNet2DConditionModel.from_config, "diffusion_pytorch_model"),
        "vae": (a.vae, AutoencoderKL.from_config, "diffusion_pytorch_model"),
        **{
            name: (config, texts[config["architectures"][0]], "model")
            for name, config in a.text_encoders.items()
        },
    }
    shapes = {name: shapes_of(make, config) for name, (config, make, _) in networks.items()}
    total = sum(math.prod(shape) for of in shapes.values() for shape in of.values())
    done = 0
    for name, (config, _, stem) in networks.items():
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", config)
        path = folder / name / f"{stem}.safetensors"
        done += write_weights(path, shapes[name], dtype, seed)
        progress(done, total)
    _write_json(folder / "model_index.json", _index(a))
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", a.scheduler)
    for name in a.text_encoders:
        write_tokenizer(folder / TOKENIZERS[name])
    return done


def shapes_of(make: Callable[[Any], Any], config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a network, made without memory for it."""
    import torch

    with torch.device("meta"):
        network = make(dict(config))
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def write_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float16", seed: int = 0
) -> int:
    """Write a safetensors file of generated weights; how many they are."""
    size = np.dtype(dtype).itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    noise = uniform(seed)
    with writing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            block = memoryview(block_of(name, shape, dtype, noise).tobytes())
            left = size * math.prod(shape)
            while left:
                left -= file.write(block[:left])
    return end // size


def block_of(
    name: str, shape: tuple[int, ...], dtype: str, noise: NDArray[np.float32]
) -> NDArray[Any]:
    """The first values of a tensor: all, or a whole block, which then comes again and again."""
    center, scale = law(name, shape)
    place = zlib.crc32(name.encode()) % BLOCK
    end = place + min(math.prod(shape), BLOCK)
    draws = noise[place:end]
    if end > BLOCK:
        draws = np.concatenate([draws, noise[: end - BLOCK]])
    return (np.float32(center) + np.float32(scale) * draws).astype(dtype)


def uniform(seed: int) -> NDArray[np.float32]:
    """Uniform draws of variance 1, none within 0.01 of zero, float32 [BLOCK]."""
    draw = np.random.default_rng(seed)
    size = draw.uniform(0.01, math.sqrt(3), BLOCK).astype(np.float32)
    return np.where(draw.random(BLOCK, np.float32) < 0.5, size, -size)


def law(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The mean of a parameter's values and their deviation."""
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.1
    if "embedding.weight" in name:  # tables of tokens and positions
        return 0.0, 0.5
    if len(shape) > 1:
        return 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    return 0.0, 0.1


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that knows single bytes alone: 514 tokens, of 49408 in CLIP's own."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    # GPT-2's table: bytes that are no visible character stand as those from 256 on.
    letters = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(len(hidden))]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {word: number for number, word in enumerate([*words, BOS, EOS])}
    folder.mkdir()
    _write_json(folder / "vocab.json", ids)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": EOS,
            "pad_token": EOS,
        },
    )


def _index(architecture: Architecture) -> dict[str, Any]:
    """What model_index.json says: of each component the library and the class, or neither."""
    a = architecture
    parts = {
        "scheduler": ["diffusers", a.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, tokenizer in TOKENIZERS.items():
        if name in a.text_encoders:
            parts[name] = ["transformers", a.text_encoders[name]["architectures"][0]]
            parts[tokenizer] = ["transformers", "CLIPTokenizer"]
        elif a.pipeline != SD:  # which has no place for a second one
            parts[name] = parts[tokenizer] = [None, None]
    if a.pipeline == SD:
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    return {"_class_name": a.pipeline, **a.model_index, **parts}


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

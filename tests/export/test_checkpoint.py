"""What is no SDXL base checkpoint of safetensors is refused in one line that names the way out."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export.checkpoint import open_checkpoint
from support.checkpoints import MakeCheckpoint, make_tokenizer

UNET = "unet/diffusion_pytorch_model.safetensors"
Spoil = Callable[[Path], None]


def edited(file: str, **entries: Any) -> Spoil:
    """Changes entries of a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text())
        found |= entries
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return spoil


def removed(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


def replaced(file: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return spoil


def pickled(file: str, instead: str) -> Spoil:
    """Replaces a file by what torch.save writes."""

    def spoil(folder: Path) -> None:
        (folder / instead).unlink()
        torch.save({"weight": torch.zeros(2)}, folder / file)

    return spoil


def cut(file: str, count: int) -> Spoil:
    def spoil(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[:-count])

    return spoil


def entry(name: str, kind: str | None) -> Spoil:
    return edited("model_index.json", **{name: ["diffusers", kind]})


REFUSED: dict[str, tuple[Spoil, str]] = {
    "no index": (removed("model_index.json"), "no model_index.json, so no checkpoint"),
    "broken index": (replaced("model_index.json", b"{"), "no valid JSON"),
    "a list for an index": (replaced("model_index.json", b"[]"), "a list of 0, wants an object"),
    "SD 1": (
        edited("model_index.json", _class_name="StableDiffusionPipeline"),
        "is Stable Diffusion 1 or 2",
    ),
    "refiner": (
        edited("model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"),
        "SDXL refiner",
    ),
    "something else": (edited("model_index.json", _class_name=[1]), "a pipeline \\(a list of 1"),
    "no first text encoder": (entry("text_encoder", None), "text_encoder is null, wants CLIPText"),
    "a T5 encoder": (entry("text_encoder_2", "T5EncoderModel"), '"T5EncoderModel", wants CLIP'),
    "a tiny VAE": (entry("vae", "AutoencoderTiny"), '"AutoencoderTiny", wants AutoencoderKL'),
    "inpainting": (edited("unet/config.json", in_channels=9), "in_channels 9, for inpainting"),
    "pix2pix": (edited("unet/config.json", in_channels=8), "for InstructPix2Pix"),
    "no sizes": (edited("unet/config.json", addition_embed_type="text"), "wants text_time"),
    "five sizes": (
        edited("unet/config.json", projection_class_embeddings_input_dim=5 * 8 + 24),
        "aesthetic score",
    ),
    "other sizes": (
        edited("unet/config.json", projection_class_embeddings_input_dim=1),
        "projection_class_embeddings_input_dim 1, wants 72",
    ),
    "LCM": (edited("unet/config.json", time_cond_proj_dim=256), "guidance-distilled"),
    "other context": (edited("unet/config.json", cross_attention_dim=768), "768, wants 56"),
    "classes": (edited("unet/config.json", class_embed_type="timestep"), "class_embed_type"),
    "endless layers": (
        edited("text_encoder/config.json", num_hidden_layers=10**9),
        "num_hidden_layers.*at most 100",
    ),
    "more layers than tensors": (
        edited("unet/config.json", layers_per_block=90, transformer_layers_per_block=90),
        "more layers than the checkpoint has tensors",
    ),
    "a huge size": (edited("vae/config.json", sample_size=1 << 40), "at most 1048576"),
    "a long list": (edited("vae/config.json", block_out_channels=[1] * 99), "wants a short list"),
    "half a config": (edited("text_encoder/config.json", hidden_size=None), "hidden_size: got nul"),
    "no UNet": (lambda folder: shutil.rmtree(folder / "unet"), "no unet/config.json"),
    "no weights": (removed(UNET), "unet: no weights"),
    "cut short": (cut(UNET, 100), "cut short"),
    "empty": (replaced(UNET, b""), "is empty"),
    "a huge header": (
        replaced(UNET, (1 << 40).to_bytes(8, "little") + b"{" + b" " * 99),
        "header of",
    ),
    "pickle by another name": (
        replaced(UNET, pickle.dumps({"weight": [1, 2]}, protocol=4)),
        "is a pickle, not safetensors",
    ),
    "torch.save by another name": (pickled(UNET, UNET), "pickles in it"),
    "pickled weights": (
        pickled("unet/diffusion_pytorch_model.bin", UNET),
        "holds pickles, wants safetensors; if you trust its source, convert it: python -c",
    ),
    "no scheduler": (removed("scheduler/scheduler_config.json"), "no scheduler/scheduler_config"),
    "no vocabulary": (removed("tokenizer/tokenizer.json"), "neither vocab.json with merges.txt"),
    "no tokenizer config": (removed("tokenizer_2/tokenizer_config.json"), "no tokenizer_config"),
}


@pytest.mark.parametrize(("spoil", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_exported_is_named(
    checkpoint: MakeCheckpoint, spoil: Spoil, words: str
) -> None:
    folder = checkpoint()
    spoil(folder)
    with pytest.raises(BadInput, match=words) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


def shard(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Changes where an index places its tensors."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / INDEX).read_text())
        change(found["weight_map"])
        (folder / INDEX).write_text(json.dumps(found))

    return spoil


FIRST = "diffusion_pytorch_model-00001-of-00002.safetensors"
SHARDS: dict[str, tuple[Spoil, str]] = {
    "a path out of the folder": (
        shard(lambda places: places.update({"conv_in.weight": "../../secret.safetensors"})),
        "wants a name in its folder",
    ),
    "an absolute path": (
        shard(lambda places: places.update({"conv_in.weight": "/etc/passwd"})),
        "wants a name in its folder",
    ),
    "a shard of pickles": (
        shard(lambda places: places.update({"conv_in.weight": "model.bin"})),
        "wants safetensors; if you trust",
    ),
    "a shard that is not there": (removed(f"unet/{FIRST}"), "shard .* is not there"),
    "a tensor of another shard": (
        shard(
            lambda places: places.update(
                dict.fromkeys(list(places)[:1], FIRST[:24] + "00002-of-00002.safetensors")
            )
        ),
        "the index says",
    ),
    "a tensor of no shard": (shard(lambda places: places.update(more=FIRST)), '"more" is not in'),
    "an empty map": (shard(lambda places: places.clear()), "weight_map"),
}


@pytest.mark.parametrize(("spoil", "words"), SHARDS.values(), ids=SHARDS.keys())
def test_shards_that_do_not_fit_are_named(
    checkpoint: MakeCheckpoint, spoil: Spoil, words: str
) -> None:
    folder = checkpoint(shards=2)
    assert len(open_checkpoint(folder).networks["unet"].weights) > 100
    spoil(folder)
    with pytest.raises(BadInput, match=words):
        open_checkpoint(folder)


def test_which_variant_is_taken(checkpoint: MakeCheckpoint) -> None:
    half = checkpoint("both", variant="fp16", dtype="float16")
    half_only = open_checkpoint(half)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half_only.tables
    checkpoint("both", dtype="float32")
    assert UNET in open_checkpoint(half).tables
    chosen = open_checkpoint(half, variant="fp16").tables
    assert set(chosen) == set(half_only.tables)
    with pytest.raises(BadInput, match=r"variant bf16 are not there, only .* say --variant"):
        open_checkpoint(half, variant="bf16")
    with pytest.raises(BadInput, match="wants a word"):
        open_checkpoint(half, variant="../../fp16")


def test_files_that_are_no_folder(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = checkpoint()
    single = tmp_path / "sdxl.safetensors"
    shutil.copy(folder / UNET, single)
    with pytest.raises(BadInput, match=r"in one file.*from_single_file\('"):
        open_checkpoint(single)
    old = tmp_path / "sdxl.ckpt"
    torch.save({}, old)
    with pytest.raises(BadInput, match=r"pickles in one file.*from_single_file"):
        open_checkpoint(old)
    hidden = tmp_path / "hidden.safetensors"
    torch.save({}, hidden)
    with pytest.raises(BadInput, match="pickles in it"):
        open_checkpoint(hidden)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BadInput, match="a file, wants a folder"):
        open_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(BadInput, match="no such folder"):
        open_checkpoint(tmp_path / "nothing")


def test_all_files_that_are_read_are_listed(checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(age="old", shards=2, generation={"num_inference_steps": 20})
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(open_checkpoint(folder).files) == there


def test_a_tokenizer_of_either_age(checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint()
    shutil.rmtree(folder / "tokenizer")
    make_tokenizer(folder / "tokenizer", pad_token="!", age="old")
    files = open_checkpoint(folder).files
    assert {"tokenizer/vocab.json", "tokenizer_2/tokenizer.json"} <= set(files)

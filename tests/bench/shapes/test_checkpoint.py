"""The checkpoint that ships: diffusers loads it whole, and its configurations are right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

import diffusion_rt
from diffusion_rt.bench.shapes import model
from diffusion_rt.bench.shapes.check import Ask, ask_for, diffusers_artist, held_out_scenes
from diffusion_rt.bench.shapes.see import judge, see
from diffusion_rt.bench.shapes.tokenizers import MAX_LENGTH

FOLDER = Path(diffusion_rt.__file__).parent / "runtime" / "models" / "shapes-xl"
WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


def _config(part: str) -> dict[str, object]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    loaded: dict[str, object] = json.loads((FOLDER / part / name).read_text(encoding="utf-8"))
    return loaded


def test_weights_are_float16_finite_and_small() -> None:
    total = 0
    for part, name in WEIGHTS.items():
        path = FOLDER / part / f"{name}.safetensors"
        total += path.stat().st_size
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (it has no iterator)
                tensor = file.get_tensor(key)
                assert tensor.dtype == np.float16, key
                assert np.isfinite(tensor).all(), key
    assert total < 15.5e6


def test_text_configurations_pool_at_the_end_mark() -> None:
    for part in ("text_encoder", "text_encoder_2"):
        config = _config(part)
        assert config["eos_token_id"] != 2  # the id by which transformers knows its oldest models
        assert config["eos_token_id"] == int(str(config["vocab_size"])) - 1
        assert config["max_position_embeddings"] == MAX_LENGTH


def test_scheduler_and_vae_are_of_sdxls_kind() -> None:
    scheduler = _config("scheduler")
    for name, value in model.SCHEDULER.items():
        assert scheduler[name] == value
    assert scheduler["_class_name"] == "EulerDiscreteScheduler"
    scale = _config("vae")["scaling_factor"]
    assert isinstance(scale, float)
    assert 0.05 < scale < 5
    index = json.loads((FOLDER / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True


def test_plain_diffusers_loads_and_draws_it() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    scene = held_out_scenes("single", 1)[0]
    ask = ask_for(scene, 0)
    image = pipeline(
        ask.prompt,
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(ask.seed),
    ).images[0]
    assert image.size == (128, 128)  # by the configurations alone
    assert judge(scene, see(np.asarray(image)))["background"]


def test_most_held_out_captions_are_drawn_right() -> None:
    """A small sample; `python -m diffusion_rt.bench.shapes.check` measures 200 of each."""
    scenes = held_out_scenes("single", 12) + held_out_scenes("relation", 12)
    asks: list[Ask] = [ask_for(s, i) for i, s in enumerate(scenes)]
    verdicts = [
        judge(s, see(p)) for s, p in zip(scenes, diffusers_artist(FOLDER)(asks), strict=True)
    ]
    assert np.mean([v["all"] for v in verdicts[:12]]) > 0.7
    assert np.mean([v["all"] for v in verdicts[12:]]) > 0.5


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_tokenizer_files_are_those_the_code_writes(name: str, tmp_path: Path) -> None:
    model.build_tokenizers(tmp_path)
    for file in sorted((tmp_path / name).iterdir()):
        assert (FOLDER / name / file.name).read_bytes() == file.read_bytes()

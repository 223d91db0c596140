"""What the manifest says of a checkpoint's configs."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
from transformers import CLIPTokenizer

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export import record
from diffusion_rt.export.checkpoint import Checkpoint, open_checkpoint
from support.checkpoints import SCHEDULER, MakeCheckpoint, write_json


def opened(checkpoint: MakeCheckpoint, **settings: Any) -> Checkpoint:
    return open_checkpoint(checkpoint(**settings))


def test_the_schedule_of_a_full_config(checkpoint: MakeCheckpoint) -> None:
    found = record.schedule_record(opened(checkpoint))
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing"):
        assert getattr(found, name) == SCHEDULER[name]
    assert found.scheduler == "EulerDiscreteScheduler"
    assert (found.steps_offset, found.num_train_timesteps) == (1, 1000)
    assert found.trained_betas is None
    assert found.rescale_betas_zero_snr is False
    assert found.set_alpha_to_one is False
    assert found.final_sigmas_type == "zero"


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_what_a_config_leaves_out_is_its_schedulers_default(
    checkpoint: MakeCheckpoint, name: str
) -> None:
    folder = checkpoint()
    config = {"_class_name": name, "clip_sample": False}  # DDIM's default is to clip
    write_json(folder / "scheduler/scheduler_config.json", config)
    found = record.schedule_record(open_checkpoint(folder))
    wanted = getattr(diffusers, name)().config
    compared = 0
    for field in found.__dataclass_fields__:
        if wanted.get(field) is not None:
            assert getattr(found, field) == wanted[field], field
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"_class_name": "os"}, 'got "os", wants a scheduler of diffusers'),
        ({"_class_name": "NoSuchScheduler"}, "wants a scheduler of diffusers"),
        ({"_class_name": 7}, "got 7"),
        ({"_class_name": "EDMEulerScheduler"}, "has no betas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "has no betas"),
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"beta_start": "low"}, 'beta_start: got "low", wants a number'),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"timestep_spacing": "random"}, "timestep_spacing"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample is on"),
        ({"_class_name": "UniPCMultistepScheduler", "thresholding": True}, "thresholding is on"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    checkpoint: MakeCheckpoint, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=f"scheduler_config.json: .*{words}"):
        record.schedule_record(opened(checkpoint, scheduler=settings))


@pytest.mark.parametrize("age", ["old", "current"])
def test_special_tokens_are_those_of_the_tokenizers(checkpoint: MakeCheckpoint, age: str) -> None:
    found = opened(checkpoint, age=age)
    records = record.text_encoder_records(found)
    assert [r.graph for r in records] == ["text_encoder", "text_encoder_2"]
    assert [r.pooled for r in records] == [False, True]
    for encoder in records:
        tokenizer = CLIPTokenizer.from_pretrained(found.folder / encoder.tokenizer)
        assert encoder.bos_token_id == tokenizer.bos_token_id
        assert encoder.eos_token_id == tokenizer.eos_token_id
        assert encoder.pad_token_id == tokenizer.pad_token_id
        assert encoder.max_length == tokenizer.model_max_length == 77
    assert records[0].pad_token_id == records[0].eos_token_id
    assert records[1].pad_token_id == 0
    assert (records[1].layers, records[1].width) == (1, 32)


def test_a_prompt_is_no_longer_than_the_positions(checkpoint: MakeCheckpoint) -> None:
    found = opened(checkpoint, text_encoder={"max_position_embeddings": 32, "num_hidden_layers": 1})
    assert [r.max_length for r in record.text_encoder_records(found)] == [32, 77]


def test_a_special_token_that_no_vocabulary_has(checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(age="old")
    settings = folder / "tokenizer/tokenizer_config.json"
    settings.write_text(
        settings.read_text().replace('"pad_token": "<|endoftext|>"', '"pad_token": "<pad>"')
    )
    with pytest.raises(BadInput, match='pad_token "<pad>" is not in the vocabulary'):
        record.text_encoder_records(open_checkpoint(folder))


def test_levels_of_the_unet(checkpoint: MakeCheckpoint) -> None:
    found = record.unet_record(opened(checkpoint))
    assert (found.in_channels, found.channels, found.heads) == (4, (8, 16), (0, 2))


def test_constants_of_the_vae(checkpoint: MakeCheckpoint) -> None:
    latents = {"latents_mean": [0.5, 1, 2, 3], "latents_std": [1, 1, 2, 2], "shift_factor": None}
    found = record.vae_record(opened(checkpoint, vae={**latents, "force_upcast": False}))
    assert (found.factor, found.channels, found.shift_factor) == (8, 4, 0.0)
    assert found.latents_mean == (0.5, 1.0, 2.0, 3.0)
    assert found.force_upcast is False
    with pytest.raises(BadInput, match="4 levels"):
        record.vae_record(
            opened(
                checkpoint,
                vae={
                    "down_block_types": ["DownEncoderBlock2D"] * 2,
                    "up_block_types": ["UpDecoderBlock2D"] * 2,
                    "block_out_channels": [8, 8],
                },
            )
        )


def test_defaults_follow_the_checkpoint_then_diffusers(checkpoint: MakeCheckpoint) -> None:
    found = record.defaults(opened(checkpoint))
    assert (found.width, found.height, found.steps, found.guidance_scale) == (128, 128, 50, 5.0)
    shipped = {"num_inference_steps": 20, "guidance_scale": 3.0}
    found = record.defaults(opened(checkpoint, generation=shipped))
    assert (found.steps, found.guidance_scale) == (20, 3.0)
    with pytest.raises(BadInput, match="steps: got 0"):
        record.defaults(opened(checkpoint, generation={"num_inference_steps": 0}))
    with pytest.raises(BadInput, match="guidance_scale: got 1000"):
        record.defaults(opened(checkpoint, generation={"guidance_scale": 1000.0}))


@pytest.mark.parametrize(
    ("entry", "wanted"), [({}, True), ({"force_zeros_for_empty_prompt": False}, False)]
)
def test_what_no_negative_prompt_means(
    checkpoint: MakeCheckpoint, entry: dict[str, Any], wanted: bool
) -> None:
    assert record.zeros_for_empty_prompt(opened(checkpoint, model_index=entry)) is wanted


def test_versions_are_recorded() -> None:
    found = record.exporter_versions()
    assert {"diffusion-rt", "torch", "diffusers", "transformers", "onnx", "onnx-ir"} <= set(found)


def test_a_folder_is_no_part_of_what_is_read(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    found = opened(checkpoint)
    assert str(tmp_path) not in repr(record.text_encoder_records(found))

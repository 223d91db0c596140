"""Conditioning against what diffusers' own SDXL pipeline hands to its UNet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.manifest import TextEncoderRecord
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.spec import Dtype
from diffusion_rt.runtime.conditioning import Conditioner, Conditioning, emphasised
from diffusion_rt.runtime.request import Request
from support.checkpoints import make_tiny_checkpoint
from support.model_folders import manifest_of
from support.torch_engine import TorchTextEncoder

# Rows of a batch are not summed in the same order as alone; the states are about 1.
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


class Model:
    """A tiny checkpoint, as diffusers opens it and as ours does with engines in torch."""

    def __init__(self, folder: Path, dtype: Dtype = "float32", **changes: Any) -> None:
        self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        records = []
        self.engines: dict[str, TorchTextEncoder] = {}
        for suffix, pooled in (("", False), ("_2", True)):
            tokenizer = getattr(self.pipeline, f"tokenizer{suffix}")
            module = getattr(self.pipeline, f"text_encoder{suffix}")
            name = f"text_encoder{suffix}"
            self.engines[name] = TorchTextEncoder(module, pooled=pooled, dtype=dtype)
            records.append(
                TextEncoderRecord(
                    graph=name,
                    tokenizer=f"tokenizer{suffix}",
                    max_length=77,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    layers=module.config.num_hidden_layers,
                    width=module.config.hidden_size,
                    pooled=pooled,
                )
            )
        self.manifest = manifest_of(folder, {}, **{"text_encoders": tuple(records)} | changes)
        self.folder = ModelFolder(folder, self.manifest, "0" * 64)
        self.conditioner = Conditioner(self.folder, self.engines.__getitem__)

    def theirs(self, **arguments: Any) -> Conditioning:
        """What the pipeline's UNet is given at its first step."""
        self.pipeline.register_to_config(
            force_zeros_for_empty_prompt=self.manifest.force_zeros_for_empty_prompt
        )
        unet = self.pipeline.unet
        forward = unet.forward

        def spy(*_: Any, encoder_hidden_states: Any, added_cond_kwargs: Any, **__: Any) -> None:
            found = {"context": encoder_hidden_states, **added_cond_kwargs}
            raise Seen({name: tensor.numpy() for name, tensor in found.items()})

        unet.forward = spy
        try:
            self.pipeline(**arguments, num_inference_steps=1)
        except Seen as seen:
            return Conditioning(**seen.args[0])
        finally:
            unet.forward = forward
        raise AssertionError("the UNet never ran")


class Seen(Exception):
    """Carries the UNet's inputs out of the pipeline."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), age="old")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model(folder)


@pytest.fixture(scope="module")
def unforced(folder: Path) -> Model:
    """A checkpoint whose pipeline encodes \"\" where there is no negative prompt."""
    return Model(folder, force_zeros_for_empty_prompt=False)


def assert_same(ours: Conditioning, theirs: Conditioning) -> None:
    for name in ("context", "text_embeds", "time_ids"):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, err_msg=name, **TOLERANCE)


TEXTS = ["", "a red circle", "two cats, wow!", "İ <|endoftext|> 猫", "a " * 75, "a ((b) [c:1.2])"]
SIZES = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
REQUESTS = st.fixed_dictionaries(
    {"prompt": st.sampled_from(TEXTS), "guidance_scale": st.sampled_from([1.0, 5.0])},
    optional={
        "prompt_2": st.sampled_from([None, *TEXTS]),
        "negative_prompt": st.sampled_from([None, *TEXTS]),
        "negative_prompt_2": st.sampled_from([None, *TEXTS]),
        "clip_skip": st.sampled_from([None, 0, 1, 2]),
        "width": st.sampled_from([8, 64, 1024]),
        "height": st.sampled_from([16, 64, 1216]),
        "original_size": SIZES,
        "crops_coords_top_left": SIZES,
        "target_size": SIZES,
        "negative": st.tuples(SIZES, SIZES, SIZES),
    },
)


@settings(max_examples=60, deadline=None)
@given(fields=REQUESTS, forced=st.booleans())
def test_as_diffusers(fields: dict[str, Any], forced: bool, model: Model, unforced: Model) -> None:
    chosen = model if forced else unforced
    if forced and fields.get("negative_prompt") is None:
        fields["negative_prompt_2"] = None
    names = ("original_size", "crops_coords_top_left", "target_size")
    fields |= zip((f"negative_{n}" for n in names), fields.pop("negative", ()), strict=False)
    request = Request(**fields, emphasis="none")
    guided = fields["guidance_scale"] > 1
    size = {"width": request.width or 128, "height": request.height or 128}
    assert_same(chosen.conditioner(request, guided=guided), chosen.theirs(**fields | size))


def test_without_a_negative_prompt_is_not_with_an_empty_one(model: Model, unforced: Model) -> None:
    nothing, empty = Request(prompt="a cat"), Request(prompt="a cat", negative_prompt="")
    zeros = model.conditioner(nothing, guided=True)
    assert not zeros.context[0].any()
    assert not zeros.text_embeds[0].any()
    said = model.conditioner(empty, guided=True)
    assert said.context[0].any()
    assert said.text_embeds[0].any()
    assert (unforced.conditioner(nothing, guided=True).context == said.context).all()


def encoded(model: Model, text: str, **arguments: Any) -> tuple[Any, Any]:
    """Context [77, width] and pooled text of one chunk, by diffusers."""
    with torch.no_grad():
        found = model.pipeline.encode_prompt(text, do_classifier_free_guidance=False, **arguments)
    return found[0][0].numpy(), found[2][0].numpy()


def test_long_prompts_are_encoded_chunk_by_chunk(model: Model) -> None:
    long = "red " * 75 + "circle " * 75 + "star"
    request = Request(prompt=long, prompt_2="a cat BREAK a dog", negative_prompt="dark")
    ours = model.conditioner(request, guided=True)
    first = [encoded(model, text)[0][:, :24] for text in ("red " * 75, "circle " * 75, "star")]
    second = [encoded(model, text)[0][:, 24:] for text in ("a cat", "a dog", "")]
    expected = np.concatenate([np.concatenate(first), np.concatenate(second)], axis=-1)
    negative = np.concatenate([encoded(model, text)[0] for text in ("dark", "", "")])
    assert ours.context.shape == (2, 231, 56)
    np.testing.assert_allclose(ours.context[1], expected, **TOLERANCE)
    np.testing.assert_allclose(ours.context[0], negative, **TOLERANCE)
    pooled = [encoded(model, text)[1] for text in ("dark", "a cat")]
    np.testing.assert_allclose(ours.text_embeds, pooled, **TOLERANCE)
    # Zeros are as long as the prompt they stand beside.
    zeros = model.conditioner(replace(request, negative_prompt=None), guided=True)
    assert zeros.context.shape == (2, 231, 56)
    assert not zeros.context[0].any()
    # A long negative prompt makes the positive one longer.
    ours = model.conditioner(Request(prompt="a cat", negative_prompt=long), guided=True)
    expected = np.concatenate([encoded(model, text)[0] for text in ("a cat", "", "")])
    np.testing.assert_allclose(ours.context[1], expected, **TOLERANCE)


@pytest.mark.parametrize("text", ["", "a star", "a star " * 40, "a star " * 90])
@pytest.mark.parametrize("negative", [None, "", "dull " * 100])
@pytest.mark.parametrize("guided", [True, False])
def test_the_length_of_the_context_is_known_before_any_engine_runs(
    text: str, negative: str | None, guided: bool, model: Model
) -> None:
    request = Request(prompt=text, negative_prompt=negative)
    for engine in model.engines.values():
        engine.batches.clear()
    tokens = model.conditioner.tokens(request, guided=guided)
    assert not any(engine.batches for engine in model.engines.values())
    assert tokens == model.conditioner(request, guided=guided).context.shape[1]


def test_each_chunk_is_encoded_once_and_in_small_groups(model: Model) -> None:
    for engine in model.engines.values():
        engine.batches.clear()
    same = "a cat BREAK a cat BREAK a dog"
    model.conditioner(Request(prompt=same, negative_prompt=f"{same} BREAK"), guided=True)
    assert [e.batches for e in model.engines.values()] == [[2], [2]]
    many = " BREAK ".join(f"a cat {i}" for i in range(20))
    for engine in model.engines.values():
        engine.batches.clear()
    model.conditioner(Request(prompt=many, prompt_2="a"), guided=False)
    assert [e.batches for e in model.engines.values()] == [[8, 8, 4], [2]]


@pytest.mark.parametrize("emphasis", ["original", "no-norm"])
def test_weights_multiply_states(emphasis: Any, model: Model) -> None:
    request = Request(prompt="a (red:1.5) cat BREAK [[a]] dog BREAK sea", emphasis=emphasis)
    ours = model.conditioner(request, guided=False)
    plain = [encoded(model, text) for text in ("a red cat", "a dog", "sea")]
    tokenizer = model.pipeline.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    weights = np.ones((3, 77, 1))
    weights[0, 1 + count("a") : 1 + count("a red")] = 1.5
    weights[1, 1 : 1 + count("a")] = 1.1**-2
    for i, (context, _) in enumerate(plain):
        found = ours.context[0, 77 * i : 77 * i + 77]
        for part in (slice(0, 24), slice(24, None)):  # each encoder for itself
            before = context[:, part].astype(np.float64)
            expected = before * weights[i]
            if emphasis == "original":
                expected *= before.mean() / expected.mean()
            np.testing.assert_allclose(found[:, part], expected, **TOLERANCE)
    np.testing.assert_allclose(ours.text_embeds[0], plain[0][1], **TOLERANCE)  # never weighted
    assert (found == model.conditioner(replace(request, prompt="sea"), guided=False).context).all()


def test_emphasis_without_a_mean_to_restore() -> None:
    hidden = np.array([[1, 1], [-1, -1]], np.float32)
    assert emphasised(hidden, (1.0, 1.0), "original") is hidden
    assert (emphasised(hidden, (2.0, 2.0), "original") == 2 * hidden).all()
    assert (emphasised(hidden, (2.0, 1.0), "no-norm") == [[2, 2], [-1, -1]]).all()


def test_a_float16_engine_gives_float32(folder: Path, model: Model) -> None:
    half = Model(folder, "float16")
    request = Request(prompt="a (red:1.2) circle", negative_prompt="dark")
    ours, exact = half.conditioner(request, guided=True), model.conditioner(request, guided=True)
    assert ours.context.dtype == ours.text_embeds.dtype == np.float32
    np.testing.assert_allclose(ours.context, exact.context, atol=5e-3)
    np.testing.assert_allclose(ours.text_embeds, exact.text_embeds, atol=5e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_skip": 3}, "clip_skip=3 leaves no layer of a text encoder; give 0 to 2"),
        ({"negative_prompt_2": "x"}, "negative_prompt_2 has no effect"),
        ({"negative_original_size": (8, 8)}, "only have an effect together"),
        ({"negative_target_size": (8, 8)}, "only have an effect together"),
        ({"negative_crops_coords_top_left": (0, 1)}, "only have an effect together"),
        ({"prompt": "(a:99)"}, 'prompt gives "a" the weight 99'),
        ({"prompt_2": "(a:99)"}, 'prompt_2 gives "a" the weight 99'),
        ({"negative_prompt": "(a:99)"}, 'negative_prompt gives "a" the weight 99'),
        ({"negative_prompt": "", "negative_prompt_2": "a " * 3000}, "negative_prompt_2 fills 40"),
        ({"prompt": "a" * 70_000}, "prompt has 70000 bytes"),
    ],
)
def test_bad_requests(fields: dict[str, Any], message: str, model: Model) -> None:
    with pytest.raises(BadInput, match=message):
        model.conditioner(Request(**{"prompt": "a", **fields}), guided=True)


def test_a_manifest_that_does_not_fit_is_refused(folder: Path, model: Model) -> None:
    first, second = model.manifest.text_encoders

    def opened(*records: TextEncoderRecord) -> Conditioner:
        manifest = replace(model.manifest, text_encoders=records)
        return Conditioner(ModelFolder(folder, manifest, ""), model.engines.__getitem__)

    with pytest.raises(BadInput, match="has 633 tokens, but the manifest's pad_token_id is 633"):
        opened(first, replace(second, pad_token_id=633))
    with pytest.raises(BadInput, match="differ in max_length"):
        opened(replace(first, max_length=64), second)
    with pytest.raises(BadInput, match="gives no text_embeds"):
        opened(second, first)
    not_said = "text_encoder does not give what the manifest says"
    for wrong, message in (
        (replace(first, layers=7), not_said),
        (replace(first, width=25), not_said),
        (replace(first, pooled=True), "text_encoder has no output text_embeds"),
    ):
        with pytest.raises(BadInput, match=message):
            opened(wrong, second)(Request(prompt="a"), guided=False)


def test_values_that_are_not_finite_are_a_fault(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.engines["text_encoder_2"]
    monkeypatch.setattr(engine, "enqueue", lambda: None)  # leaves the NaN that bind wrote
    with pytest.raises(Fault, match="text_encoder_2 gave values that are not finite"):
        model.conditioner(Request(prompt="a"), guided=False)

"""Names of weights in every age, and parameters bound to them, each once."""

import random

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.safetensors_file import StoredTensor
from diffusion_rt.export.names import Weight, bind, published
from support.checkpoints import TEXT, TEXT_2, VAE, old_text_name, old_vae_name


def stored(shape: tuple[int, ...], dtype: str = "F32", offset: int = 0) -> Weight:
    return Weight("vae/model.safetensors", StoredTensor(dtype, shape, offset, 4))


def vae_names() -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in AutoencoderKL.from_config(VAE).named_parameters()]


def test_published_names_of_text_encoders() -> None:
    for name, kind, config in (
        ("text_encoder", CLIPTextModel, TEXT),
        ("text_encoder_2", CLIPTextModelWithProjection, TEXT_2),
    ):
        with torch.device("meta"):
            now = [n for n, _ in kind(CLIPTextConfig(**config)).named_parameters()]
        for parameter in now:
            assert published(name, parameter) == published(name, old_text_name(parameter))
            assert published(name, parameter).startswith(("text_model.", "text_projection."))
        assert len({published(name, parameter) for parameter in now}) == len(now)


def test_published_names_of_the_vae() -> None:
    now = vae_names()
    old = [old_vae_name(name) for name in now]
    assert sum(a != b for a, b in zip(now, old, strict=True)) == 16
    assert [published("vae", name) for name in old] == now
    assert [published("vae", name) for name in now] == now


def test_names_of_the_unet_are_left_alone() -> None:
    for name in ("mid_block.attentions.0.query.weight", "conv_in.weight"):
        assert published("unet", name) == name


@given(st.randoms(use_true_random=False))
def test_each_parameter_gets_its_own_tensor_in_any_order(shuffled: random.Random) -> None:
    names = [f"decoder.conv{i}.weight" for i in range(12)]
    order = list(names)
    shuffled.shuffle(order)
    tensors = {name: stored((2, 3), offset=names.index(name)) for name in order}
    bound, left = bind("vae", dict.fromkeys(names, (2, 3)), tensors)
    assert [bound[name].tensor.offset for name in names] == list(range(12))
    assert left == []


def test_a_matrix_may_be_stored_as_a_convolution_and_back() -> None:
    name = "decoder.mid_block.attentions.0.to_q.weight"
    for wanted, found in (((4, 4), (4, 4, 1, 1)), ((4, 4, 1, 1), (4, 4))):
        bound, _ = bind("vae", {name: wanted}, {name: stored(found)})
        assert bound[name].tensor.shape == found


def test_leftovers_are_listed_but_for_buffers() -> None:
    name = "text_model.embeddings.position_embedding.weight"
    tensors = {
        "embeddings.position_embedding.weight": stored((2, 2)),
        "text_model.embeddings.position_ids": stored((1, 2), "I64"),
        "logit_scale": stored(()),
    }
    bound, left = bind("text_encoder", {name: (2, 2)}, tensors)
    assert list(bound) == [name]
    assert left == ["logit_scale"]


NAME = "decoder.mid_block.attentions.0.to_q.weight"
OLD = "decoder.mid_block.attentions.0.query.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no tensor for decoder.mid_block.attentions.0.to_q.weight; download it again"),
        ({NAME: stored((4, 4)), OLD: stored((4, 4))}, 'query.weight" is the parameter .*to_q'),
        ({NAME: stored((4, 5))}, r"shape \[4, 5\], the config of vae wants \[4, 4\]"),
        ({NAME: stored((4, 4, 3, 3))}, r"shape \[4, 4, 3, 3\]"),
        ({NAME: stored((16,))}, r"shape \[16\]"),
        ({NAME: stored((4, 4), "I8")}, "dtype I8, wants F32, F16, BF16"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, Weight], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        bind("vae", {NAME: (4, 4)}, tensors)

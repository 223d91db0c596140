from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.protocol import Buffers
from diffusion_rt.engines.spec import Dtype, TensorSpec
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.unet import Unet
from support.fake_engine import FakeEngine

Array = NDArray[np.float32]
CHANNELS, WIDTH, TOKENS = 4, 3, 5


def spec(name: str, *shape: int | str, dtype: Dtype = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


KEY = spec("attn.key", "batch", "tokens")
ADDED = spec("added", "batch", WIDTH)
PROJECTION = spec("resnet.time", "batch", WIDTH)


def prompt_part(outputs: tuple[TensorSpec, ...] = (KEY, ADDED)) -> FakeEngine:
    def compute(x: Buffers) -> Mapping[str, Any]:
        key = x["context"].sum(axis=-1)
        return {"attn.key": key, "added": x["text_embeds"] + x["time_ids"].sum(1, keepdims=True)}

    inputs = [
        spec("context", "batch", "tokens", 2),
        spec("text_embeds", "batch", WIDTH),
        spec("time_ids", "batch", 6),
    ]
    return FakeEngine(inputs, list(outputs), compute)


def timestep_part(
    outputs: tuple[TensorSpec, ...] = (spec("resnet.time", "n", WIDTH),),
) -> FakeEngine:
    inputs = [spec("timestep", "n"), spec("added", "n", WIDTH)]
    return FakeEngine(
        inputs, list(outputs), lambda x: {"resnet.time": x["timestep"][:, None] * x["added"]}
    )


def step_part(
    inputs: tuple[TensorSpec, ...] = (KEY, PROJECTION), dtype: Dtype = "float32"
) -> FakeEngine:
    shape = ("batch", CHANNELS, "height", "width")

    def compute(x: Buffers) -> Mapping[str, Any]:
        told = x["resnet.time"].sum(1) + 10 * x["attn.key"].sum(1)
        return {"prediction": x["latent"] + told[:, None, None, None]}

    return FakeEngine(
        [spec("latent", *shape, dtype=dtype), *inputs],
        [spec("prediction", *shape, dtype=dtype)],
        compute,
    )


def conditioning(rows: int, draw: np.random.Generator) -> Conditioning:
    return Conditioning(
        context=draw.standard_normal((rows, TOKENS, 2), np.float32),
        text_embeds=draw.standard_normal((rows, WIDTH), np.float32),
        time_ids=draw.standard_normal((rows, 6), np.float32),
    )


@given(
    rows=st.sampled_from([1, 2]),
    images=st.integers(1, 3),
    timesteps=st.lists(st.floats(0, 999, width=32), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_the_parts_make_the_whole(
    rows: int, images: int, timesteps: list[float], size: tuple[int, int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    told = conditioning(rows, draw)
    unet = Unet(prompt_part(), timestep_part(), step_part())
    unet.prepare(told, np.array(timesteps, np.float32), images, (CHANNELS, *size))
    added = told.text_embeds + told.time_ids.sum(1, keepdims=True)
    for evaluation, timestep in enumerate(timesteps):
        latent = draw.standard_normal((images, CHANNELS, *size), np.float32)
        scale = float(draw.uniform(0.1, 1))
        found = unet.predict(evaluation, latent, scale)
        row_terms = np.float32(timestep) * added.sum(1) + 10 * told.context.sum((1, 2))
        # All unconditional rows, then all conditional ones.
        wanted = np.concatenate([latent * np.float32(scale) + term for term in row_terms])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-2)


def test_evaluations_may_come_in_any_order() -> None:
    draw = np.random.default_rng(0)
    unet = Unet(prompt_part(), timestep_part(), step_part())
    timesteps = np.array([900, 500, 100], np.float32)
    unet.prepare(conditioning(2, draw), timesteps, 2, (CHANNELS, 3, 3))
    latent = draw.standard_normal((2, CHANNELS, 3, 3), np.float32)
    forwards = [unet.predict(i, latent, 1.0).copy() for i in range(3)]
    backwards = [unet.predict(i, latent, 1.0).copy() for i in (2, 1, 0)]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_what_is_constant_runs_once_and_buffers_stay() -> None:
    prompt, timestep, step = prompt_part(), timestep_part(), step_part()
    unet = Unet(prompt, timestep, step)
    told = conditioning(2, np.random.default_rng(0))
    latent = np.zeros((1, CHANNELS, 2, 2), np.float32)
    for images in (1, 3):
        unet.prepare(told, np.array([5, 1], np.float32), images, (CHANNELS, 2, 2))
        first = unet.predict(0, latent.repeat(images, 0), 1.0)
        assert unet.predict(1, latent.repeat(images, 0), 1.0) is first
    assert (prompt.binds, timestep.binds, step.binds) == (2, 2, 2)


def test_a_float16_graph_gets_float16_latents() -> None:
    unet = Unet(prompt_part(), timestep_part(), step_part(dtype="float16"))
    told = Conditioning(
        context=np.zeros((1, TOKENS, 2), np.float32),
        text_embeds=np.zeros((1, WIDTH), np.float32),
        time_ids=np.zeros((1, 6), np.float32),
    )
    unet.prepare(told, np.array([1], np.float32), 1, (CHANNELS, 2, 2))
    latent = np.random.default_rng(0).standard_normal((1, CHANNELS, 2, 2), np.float32)
    found = unet.predict(0, latent, 0.5)
    np.testing.assert_array_equal(found, (latent * np.float32(0.5)).astype(np.float16))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((prompt_part((KEY,)), timestep_part(), step_part()), "unet_prompt has no output added"),
        ((step_part(), timestep_part(), prompt_part()), "unet_prompt has no input context"),
        ((prompt_part(), timestep_part(()), step_part()), "unet_step has an input resnet.time"),
        ((prompt_part(), timestep_part(), step_part((KEY,))), "unet_step has no input resnet.time"),
        ((prompt_part(), prompt_part(), step_part()), "unet_timestep has no input added"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    parts: tuple[FakeEngine, FakeEngine, FakeEngine], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        Unet(*parts)


def test_an_output_of_unknown_size_is_refused() -> None:
    strange = spec("attn.key", "batch", "heads")
    unet = Unet(prompt_part((strange, ADDED)), timestep_part(), step_part())
    told = conditioning(1, np.random.default_rng(0))
    with pytest.raises(BadInput, match=r"unet_prompt: output attn.key has a size 'heads'"):
        unet.prepare(told, np.array([1], np.float32), 1, (CHANNELS, 2, 2))

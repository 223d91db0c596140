"""Every field of a Request is a flag, and its text comes back as it was meant."""

import argparse
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.command import Parser
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.flags import FLAGS, SAMPLER_NAMES, add_flags, byte_size, request_of
from diffusion_rt.runtime.request import EMPHASES, RNGS, SIGMAS, SPACINGS, Request
from diffusion_rt.runtime.samplers import SAMPLERS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FLOATS = st.floats(0, 1e6)
SIDE = st.integers(1, 2048).map(lambda n: 8 * n)
PAIR = st.tuples(st.integers(1, 65536), st.integers(1, 65536))
CROP = st.tuples(st.integers(0, 65536), st.integers(0, 65536))
LIST = st.lists(FLOATS, min_size=1, max_size=9).map(tuple)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": TEXT,
    "prompt_2": TEXT,
    "negative_prompt": TEXT,
    "negative_prompt_2": TEXT,
    "width": SIDE,
    "height": SIDE,
    "num_inference_steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 100),
    "guidance_rescale": st.floats(0, 1),
    "sampler": st.sampled_from(["euler", "dpmpp-2m"]),
    "spacing": st.sampled_from(SPACINGS),
    "sigmas": st.sampled_from(SIGMAS) | LIST,
    "eta": st.floats(0, 1),
    "seed": st.integers(0, 2**64 - 1),
    "num_images_per_prompt": st.integers(1, 1000),
    "rng": st.sampled_from(RNGS),
    "clip_skip": st.integers(0, 100),
    "emphasis": st.sampled_from(EMPHASES),
    "original_size": PAIR,
    "crops_coords_top_left": CROP,
    "target_size": PAIR,
    "negative_original_size": PAIR,
    "negative_crops_coords_top_left": CROP,
    "negative_target_size": PAIR,
}
SETTINGS = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={name: values for name, values in FIELDS.items() if name != "prompt"},
)


def parser() -> Parser:
    made = Parser(prog="try")
    add_flags(made)
    return made


def read(*argv: str) -> Request:
    return request_of(parser().read(argv))


def written(name: str, value: object) -> str:
    text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')}={text}"


def test_every_field_of_request_is_a_flag_and_nothing_else_is() -> None:
    flags = [name for group in FLAGS.values() for name in group]
    assert sorted(flags) == sorted(field.name for field in dataclasses.fields(Request))


@given(SETTINGS)
def test_settings_survive_the_command_line(settings: dict[str, Any]) -> None:
    argv = [written(name, value) for name, value in settings.items()]
    assert read(*argv) == Request(**settings)


@given(LIST)
def test_timesteps_survive_the_command_line(timesteps: tuple[float, ...]) -> None:
    assert read("--prompt=x", written("timesteps", timesteps)).timesteps == timesteps


def test_short_and_long_names() -> None:
    short = read("--prompt", "x", "--steps", "7", "--images", "2", "--seed", "4,9")
    long = read("--prompt=x", "--num-inference-steps=7", "--num-images-per-prompt=2", "--seed=4,9")
    assert short == long
    assert (short.num_inference_steps, short.num_images_per_prompt, short.seed) == (7, 2, (4, 9))


def test_sizes_are_height_before_width() -> None:
    assert read("--prompt=x", "--original-size=512x768").original_size == (512, 768)
    assert read("--prompt=x", "--target-size", "512,768").target_size == (512, 768)


def test_what_is_left_out_is_left_to_the_model() -> None:
    assert read("--prompt", "x") == Request(prompt="x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--width=1023", "width=1023 is no multiple of 8; try 1016 or 1024"),
        ("--width=0", "width=0 is out of range; give 8 to 16384"),
        ("--width=-512", "width=-512 is out of range"),
        ("--height=99999999999", "height=99999999999 is out of range"),
        ("--width=512.0", "--width: '512.0' is no whole number"),
        ("--steps=0", "steps=0 is out of range; give 1 to 1000"),
        ("--steps=-3", "steps=-3 is out of range"),
        ("--steps=1000000", "steps=1000000 is out of range"),
        ("--steps=" + "9" * 5000, "is no whole number"),
        ("--steps=0x10", "--steps/--num-inference-steps: '0x10' is no whole number"),
        ("--images=0", "images=0 is out of range"),
        ("--guidance-scale=nan", "guidance_scale=nan is out of range; give 0 to 100"),
        ("--guidance-scale=-1", "guidance_scale=-1.0 is out of range"),
        ("--guidance-scale=100.5", "guidance_scale=100.5 is out of range"),
        ("--guidance-scale=1e999", "guidance_scale=inf is out of range"),
        ("--guidance-rescale=2", "guidance_rescale=2.0 is out of range; give 0 to 1"),
        ("--seed=-1", "seed=-1 is out of range"),
        ("--seed=1,2", "seed lists 2 values for 1 image(s)"),
        ("--seed=1,", "--seed: '' is no whole number"),
        ("--clip-skip=-1", "clip_skip=-1 is out of range"),
        ("--spacing=trialing", "did you mean 'trailing'?"),
        ("--sigmas=karas", "did you mean 'karras'?"),
        ("--sigmas=1,nan", "sigmas=nan is out of range"),
        ("--sigmas=", "--sigmas: '' is no number"),
        ("--rng=gpu", "rng='gpu' is not known; did you mean 'cpu'?"),
        ("--rng=zzz", "rng='zzz' is not known; one of cpu, nv"),
        ("--emphasis=loud", "emphasis='loud' is not known"),
        ("--original-size=1024", "--original-size: '1024' is no two whole numbers; write them as"),
        ("--original-size=1024x", "--original-size: '' is no whole number"),
        ("--target-size=0x8", "target_size=0 is out of range"),
        ("--crops-coords-top-left=-1,0", "crops_coords_top_left=-1 is out of range"),
    ],
)
def test_a_bad_value_is_named_with_what_would_do(argv: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        read("--prompt=x", argv)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_help_names_every_sampler() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    assert f"{SAMPLER_NAMES[-1]}; default" in " ".join(parser().format_help().split())


def test_numbers_of_numpy_are_numbers() -> None:
    given: dict[str, Any] = {
        "seed": np.int64(7),
        "guidance_scale": np.float32(1.5),
        "target_size": (np.int32(8), 8),
    }
    asked = Request(prompt="x", **given)
    assert asked == Request(prompt="x", seed=7, guidance_scale=1.5, target_size=(8, 8))
    assert [type(n) for n in (asked.seed, asked.guidance_scale)] == [int, float]
    given["seed"] = np.bool_(True)
    with pytest.raises(BadInput, match="is no whole number"):
        Request(prompt="x", **given)


@pytest.mark.parametrize("field", ["width", "guidance_scale", "seed", "eta"])
@pytest.mark.parametrize("power", [400, 5000])
def test_a_huge_number_is_out_of_range(field: str, power: int) -> None:
    with pytest.raises(BadInput, match=f"^{field}=a huge number is out of range"):
        Request(prompt="x", **{field: 10**power})


def test_the_help_has_a_line_for_each_flag() -> None:
    text = parser().format_help()
    for group in FLAGS.values():
        for name in group:
            assert f"--{name.replace('_', '-')} " in text
    assert argparse.SUPPRESS not in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("8 GB", 8 << 30),
        ("8GiB", 8 << 30),
        ("7.5G", 15 << 29),
        ("900M", 900 << 20),
        ("2T", 2 << 40),
        ("1048576", 1 << 20),
    ],
)
def test_an_amount_of_memory(text: str, wanted: int) -> None:
    assert byte_size(text) == wanted


@pytest.mark.parametrize("text", ["", "G", "8", "8000", "-8G", "8X", "1e9", "8,5G", "nanG", "٣G"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="8G"):
        byte_size(text)

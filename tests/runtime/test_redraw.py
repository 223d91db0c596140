"""The command that draws a picture again asks for exactly that picture."""

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.cli import _prompt, generate_parser
from diffusion_rt.runtime.flags import request_of
from diffusion_rt.runtime.picture import Metadata, Origin
from diffusion_rt.runtime.redraw import arguments_of, command_of, quoted
from diffusion_rt.runtime.request import Request
from support.requests import TEXTS, requests

SHIPPED = Origin(
    program="diffusion-rt 0.1.0",
    engine="ort (cpu)",
    model="shapes-xl",
    model_sha256="0" * 64,
    shipped=True,
    tile=None,
)
OTHER = Origin(
    program="diffusion-rt 0.1.0",
    engine="ort (cpu)",
    model="-my model",
    model_sha256="0" * 64,
    shipped=False,
    tile=64,
)


@settings(max_examples=200)
@given(request=requests(), origin=st.sampled_from([SHIPPED, OTHER]))
def test_the_command_line_reads_the_same_request(request: Request, origin: Origin) -> None:
    program, *arguments = arguments_of(Metadata(request, origin))
    found = generate_parser().read(arguments)
    found.prompt = _prompt(found)
    assert program == "generate"
    assert request_of(found) == request
    assert found.model == (None if origin.shipped else origin.model)
    assert found.vae_tiling == ("auto" if origin.tile is None else "on")


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=20))
def test_a_shell_reads_quoted_text_back(texts: list[str]) -> None:
    words = " ".join(map(quoted, texts))
    read = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True
    )
    assert read.stdout == b"".join(text.encode() + b"\0" for text in texts)
    assert plain(words[:1000]) == words[:1000]  # safe to print as it is


@given(text=TEXTS)
def test_plain_text_is_quoted_as_everywhere(text: str) -> None:
    if plain(text) == text:
        assert shlex.split(quoted(text)) == [text]


def test_an_example() -> None:
    request = Request(
        prompt="a (red:1.3) circle's edge",
        negative_prompt="-dark\nblue",
        num_inference_steps=20,
        guidance_scale=5.0,
        sampler="euler",
        sigmas=(14.6, 0.5, 0.0),
        seed=7,
        width=128,
        original_size=(64, 128),
        crops_coords_top_left=(1, 2),
    )
    assert command_of(Metadata(request, SHIPPED)) == (
        "diffusion-rt generate 'a (red:1.3) circle'\"'\"'s edge' "
        r"$'--negative-prompt=-dark\x0ablue' --width 128 --steps 20 --guidance-scale 5.0 "
        "--sampler euler --sigmas 14.6,0.5,0.0 --seed 7 --original-size 64x128 "
        "--crops-coords-top-left 1,2"
    )
    assert command_of(Metadata(Request(prompt="-"), OTHER)) == (
        "diffusion-rt generate --prompt=- '--model=-my model' --vae-tiling on"
    )


def test_a_nul_is_refused() -> None:
    with pytest.raises(BadInput, match="NUL"):
        command_of(Metadata(Request(prompt="a\0b"), SHIPPED))

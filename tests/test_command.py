"""The parser that fails in one line, and text that is safe to print."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.command import Parser, plain
from diffusion_rt.engines.errors import BadInput


def parser() -> Parser:
    made = Parser(prog="diffusion-rt try")
    made.add_argument("DIR", nargs="?")
    made.add_argument("--steps", "--num-inference-steps", type=int)
    made.add_argument("--negative-prompt")
    return made


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--setps", "5"], "--setps is no flag of diffusion-rt try; did you mean --steps?"),
        (["--setps=5"], "--setps is no flag of diffusion-rt try; did you mean --steps?"),
        (["--step", "5"], "--step is no flag of diffusion-rt try; did you mean --steps?"),
        (["--zzz"], "--zzz is no flag of diffusion-rt try; see diffusion-rt try --help"),
        (["a", "red", "circle"], "'red' is one argument too many; quote a text that has blanks"),
        (["--steps"], "--steps needs a value; one that begins with a dash is written --steps=VAL"),
        (["--negative-prompt", "-x"], "written --negative-prompt=VALUE"),
        (["--steps", "many"], "--steps/--num-inference-steps: invalid int value: 'many'"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(argv: list[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser().read(argv)
    assert message in str(caught.value)
    assert "\n" not in plain(str(caught.value))


def test_a_flag_is_not_abbreviated_and_a_dash_can_be_written() -> None:
    found = parser().read(["--negative-prompt=--steps", "--", "-x"])
    assert (found.negative_prompt, found.DIR, found.steps) == ("--steps", "-x", None)


@given(st.text(st.characters()))  # lone surrogates too
def test_plain_text_is_one_printable_line(text: str) -> None:
    shown = plain(text)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)


@given(st.text("abc é画 \"'", max_size=50))
def test_plain_leaves_harmless_text_alone(text: str) -> None:
    assert plain(text) == text


def test_plain_shows_escape_sequences_and_shortens() -> None:
    assert plain("\x1b[2J\r\n\u202e") == r"\x1b[2J\r\n\u202e"
    assert len(plain("x" * 10_000_000)) == 1000

"""Flags as they are read, and the command that a record keeps."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.bench.flags import FLAGS, command_of, parser_of
from diffusion_rt.engines.errors import BadInput

VALUES = {
    "against": st.lists(st.sampled_from(["diffusers", "compile"]), min_size=1, max_size=2),
    "sizes": st.lists(
        st.tuples(st.integers(0, 4096), st.integers(0, 4096)), min_size=1, max_size=3
    ),
    "batches": st.lists(st.integers(1, 1000), min_size=1, max_size=3),
    "guidance_scale": st.floats(0, 100),
    "prompt": st.text("a b'\"$-", min_size=1, max_size=9).filter(
        lambda text: text != "--"  # which argparse of Python 3.11 loses
    ),
    "repeats": st.integers(1, 100_000),
    "threads": st.integers(1, 1024),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_the_command_that_is_kept_asks_for_the_same(values: dict[str, object]) -> None:
    parser = parser_of("stages", "", FLAGS)
    found = parser.read([])
    vars(found).update(values)
    found.model = found.output / "secret" / "place"
    command = command_of("stages", found, "tiny")
    assert "secret" not in command
    words = shlex.split(command)
    assert words[:5] == ["diffusion-rt", "bench", "stages", "--model", "tiny"]
    again = vars(parser.read(words[3:]))
    assert {name: again[name] for name in values} == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "128"], "--sizes: '128' is no size; write WIDTHxHEIGHT"),
        (["--sizes", "128x-8"], "no size"),
        (["--sizes", "1x2x3"], "no size"),
        (["--batches", "0"], "--batches: '0' is no whole number from 1 to 1000"),
        (["--batches", "1,,2"], "'' is no whole number"),
        (["--repeats", "9" * 30], "is no whole number from 1 to 100000"),
        (["--guidance-scale", "nan"], "'nan' is no number from 0 to 100"),
        (["--against", "diffusers,onnx"], "'onnx' is no peer; of diffusers, compile"),
        (["--repeat", "3"], "--repeat is no flag of diffusion-rt bench stages; did you mean"),
    ],
)
def test_bad_flags_are_named(words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser_of("stages", "", FLAGS).read(words)
    assert message in str(caught.value)


def test_a_command_too_long_to_keep_is_refused_before_anything_runs() -> None:
    found = parser_of("stages", "", FLAGS).read(["--prompt", "a" * 300])
    with pytest.raises(BadInput, match="longer than 300 characters"):
        command_of("stages", found, None)

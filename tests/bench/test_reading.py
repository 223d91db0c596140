"""What the sub-commands share: defaults, refusals with their reasons, peers that cannot run."""

import re
import shutil

import pytest

from diffusion_rt.bench import cli, running
from diffusion_rt.bench.flags import LACKING
from diffusion_rt.engines.errors import BadInput


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("end-to-end", "timed runs of each contender; default: 10"),
        ("export", "timed runs of each contender; default: 1"),
        ("build", "timed runs of each contender; default: 1"),
        ("end-to-end", "default: 7"),
        ("checkpoint", "default: 0"),  # what `graphs` takes the weights away from again
    ],
)
def test_help_tells_what_is_taken_by_default(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["end-to-end", "stages", "startup", "kernels", "export", "build", "step", "operators", "chip"],
)
def test_what_all_share_is_taken_or_refused_with_a_reason(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    told = capsys.readouterr().out
    shared = ("model", "against", "sizes", "batches", "steps", "samplers", "repeats")
    for flag in shared:
        assert re.search(rf"^  --{flag}[ :]", told, re.MULTILINE), flag
    for flag, why in LACKING.get(name, {}).items():
        with pytest.raises(BadInput, match=f"^--{flag}: not taken here: {re.escape(why)}$"):
            cli.main([name, f"--{flag}", "1"])


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"needs a C\+\+ compiler; install g\+\+"):
        cli.main(["stages", "--against", "compile"])


def test_without_diffusers_there_is_nothing_to_hold_against(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(BadInput, match=r"^diffusers is not installed; .*\[cpu,export\]"):
        cli.main(["end-to-end"])

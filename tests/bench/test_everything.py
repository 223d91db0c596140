"""The one command for all CPU records: each of its own is understood, and a failure stops none."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, reading
from diffusion_rt.bench.everything import COMMANDS, SDXL, everything


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_of_ours(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **named: object) -> None:
        raise InterruptedError

    name, *words = shlex.split(command)
    for first in ("check_peers", "require", "origin", "subject_and_cases"):
        monkeypatch.setattr(reading, first, stop)
    monkeypatch.setattr("diffusion_rt.bench.running.warn_if_busy", stop)
    with pytest.raises(InterruptedError):
        cli.BENCHMARKS[name](name, words)


def test_they_are_what_the_tables_are_made_of() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        *("end-to-end", "stages", "startup", "operators", "build", "export", "step", "chip")
    }
    grown = [command.split()[0] for command in COMMANDS if "--setting growth" in command]
    assert grown == ["end-to-end", "operators"], "how cost grows, and why"


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def run(words: Sequence[str], folder: Path) -> int:
        ran.append(list(words))
        if words[0] == "export":
            (folder / SDXL).mkdir()
        if words[0] == "step":
            assert (folder / SDXL).is_dir(), "exported just before"
        return 2 if words[0] == "chip" else 0

    lines: list[str] = []
    (tmp_path / "work").mkdir()
    failed = everything(tmp_path, tmp_path / "work", lines.append, run)
    assert failed == ["chip"]
    assert [words[0] for words in ran] == [command.split()[0] for command in COMMANDS]
    assert all(words[-2:] == ["--output", str(tmp_path)] for words in ran)
    assert lines[0] == f"diffusion-rt bench {COMMANDS[0]}"

"""The one command for all CPU records: each of its own is understood, and a failure stops none."""

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, reading
from diffusion_rt.bench import everything as everything_module
from diffusion_rt.bench.everything import COMMANDS, SDXL, Ran, doubts, everything, plan, summary
from diffusion_rt.bench.flags import IDLE


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
    compiled = [
        words for words in map(str.split, COMMANDS) if "diffusers,compile" in " ".join(words)
    ]
    assert [words[0] for words in compiled] == ["end-to-end", "stages"]
    assert "64x64,128x128,256x256" in compiled[0], "how cost grows beside torch.compile"
    assert "diffusers,compile,ort" in compiled[0]
    engines = {
        command.split("--engine ")[1].split()[0] for command in COMMANDS if "stages --e" in command
    }
    assert engines == {"null", *IDLE}, "our own time, and that of a captured step"


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    words_of: list[list[str]] = []

    def run(words: Sequence[str], folder: Path) -> int:
        words_of.append(list(words))
        if words[0] == "export":
            (folder / SDXL).mkdir()
        if words[0] == "step":
            assert (folder / SDXL).is_dir(), "exported just before"
            return 124
        return 2 if words[0] == "startup" else 0

    lines: list[str] = []
    (tmp_path / "work").mkdir()
    ran = everything(tmp_path, tmp_path / "work", lines.append, run)
    assert [one.command.split()[0] for one in ran if one.status] == ["startup", "step"]
    assert [words[0] for words in words_of] == [command.split()[0] for command in COMMANDS]
    assert all(words[-2:] == ["--output", str(tmp_path)] for words in words_of)
    first = next(iter(COMMANDS))
    assert lines[0] == f"[1 of {len(COMMANDS)}] diffusion-rt bench {first}"


def test_the_plan_comes_first_and_fits_into_half_an_hour() -> None:
    *lines, last = plan()
    assert [line.split(" min  ")[1] for line in lines] == list(COMMANDS)
    assert last.endswith("min in all, on two cores")
    assert float(last.split()[0]) == pytest.approx(sum(COMMANDS.values()), abs=0.1)
    assert sum(COMMANDS.values()) <= 30


def test_a_machine_that_is_too_small_is_told_before(tmp_path: Path) -> None:
    assert not [doubt for doubt in doubts(tmp_path, 1 << 40) if "memory" in doubt]
    assert not [doubt for doubt in doubts(tmp_path, None) if "memory" in doubt]
    assert "8.0 GB are free of memory, and SDXL takes 16" in doubts(tmp_path, 8 * 10**9)[-1]


def test_the_end_says_what_became_of_each() -> None:
    ran = [Ran("chip", 61, 0), Ran("startup --repeats 7", 5, 2), Ran("step", 1800, 124)]
    assert [line.split() for line in summary(ran)] == [
        ["61", "s", "done", "chip"],
        ["5", "s", "failed", "(2)", "startup", "--repeats", "7"],
        ["1800", "s", "took", "too", "long", "step"],
        *[["31.1", "min;", "1", "of", "3", "done,", "2", "failed"]],
    ]


def test_what_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(everything_module, "LONGEST", 0.01)
    assert everything_module.run(["report", "--check"], tmp_path) == 124


def test_what_is_measured_is_this_very_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where it is found by a relative path, which the folder of the checkpoint has not."""
    seen: dict[str, str] = {}

    def ran(*_: object, env: dict[str, str], **__: object) -> object:
        seen.update(env)
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setenv("PYTHONPATH", "src")
    assert everything_module.run(["chip"], tmp_path) == 0
    first, *others = seen["PYTHONPATH"].split(":")
    assert (Path(first) / "diffusion_rt" / "bench").samefile(
        Path(everything_module.__file__).parent
    )
    assert Path(first).is_absolute()
    assert others == ["src"]
    monkeypatch.delenv("PYTHONPATH")
    assert everything_module.run(["chip"], tmp_path) == 0
    assert seen["PYTHONPATH"] == first


def test_the_command_tells_the_plan_and_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(output: Path, folder: Path, tell: Callable[[str], None]) -> list[Ran]:
        return [Ran("chip", 1.0, 0), Ran("step", 1.0, status)]

    monkeypatch.setattr(everything_module, "everything", some)
    for status in (0, 1):
        assert cli.main(["all", "--output", str(tmp_path)]) == status
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == plan()[0]
        assert lines[-1].endswith(f"{2 - status} of 2 done, {status} failed")

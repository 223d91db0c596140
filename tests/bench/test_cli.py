"""The sub-command: what it says, what it refuses, and what it leaves."""

import re
import shlex
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, reading
from diffusion_rt.bench.records import OURS, append
from diffusion_rt.engines.errors import BadInput
from support.exported import ExportedModel
from support.races import drawn


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.BENCHMARKS)
    assert cli.main([]) == 2


@pytest.mark.parametrize("name", cli.BENCHMARKS)
def test_each_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_the_examples_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^  diffusion-rt bench ((?!BENCHMARK).+)$", cli.HELP, re.MULTILINE)
    assert {line.split()[0] for line in lines} >= set(cli.BENCHMARKS) - {"startup"}
    for line in lines:
        name, *words = shlex.split(re.sub(r" {2,}\(.*\)$", "", line))
        function = cli.BENCHMARKS[name]

        def stop(*_: object, **named: object) -> None:
            raise InterruptedError

        # What follows the reading of the flags is not for this test.
        for first in ("check_peers", "require", "origin", "subject_and_cases"):
            monkeypatch.setattr(reading, first, stop)
        for first in (
            *("bench.kernels.check", "bench.bare.strip", "engines.model_folder.open_model"),
            *("bench.tactics_table.measured", "bench.tactics_table.reckoned"),
        ):
            monkeypatch.setattr(f"diffusion_rt.{first}", stop)
        monkeypatch.setattr("diffusion_rt.bench.machine.checkout", stop)
        with pytest.raises(InterruptedError):
            function(name, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernel"], r"'kernel' is no benchmark; one of end-to-end, stages"),
        (["stages", "--model", "nowhere"], "nowhere: no such folder"),
        (["stages", "--model", "MODEL", "--sizes", "12x16"], "width=12 is no multiple of 8"),
        (["stages", "--model", "MODEL", "--samplers", "eulr"], "euler"),
        (["startup", "--against", "compile"], "--against: startup knows diffusers alone; "),
        (
            ["startup", "--installed-ours", "."],
            "--installed-ours and --installed-theirs go together",
        ),
        (["export", "--keep", "."], "it is there already"),
        (["export", "--model", "MODEL"], "manifest.json: exported already, and a measured export"),
        (["export", "--model", "MODEL", "--keep", "x"], "leave --architecture and --keep"),
        (
            ["step", "--against", "diffusers,trt"],
            "--against: step knows diffusers, compile and ort, not trt",
        ),
        (
            ["stages", "--engine", "native", "--against", "native"],
            "--against native: that is the engine that is measured",
        ),
        (["kernels", "--model", "MODEL"], "add --sizes"),
        (["report", "--output", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, exported_model: ExportedModel) -> None:
    model = str(exported_model("plain"))
    with pytest.raises(BadInput, match=message):
        cli.main([model if word == "MODEL" else word for word in words])


def test_report_and_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "A.md"
    document.write_text("# A\n\n<!-- bench:end-to-end -->\n<!-- /bench:end-to-end -->\n")
    append(tmp_path, [drawn(0.1), drawn(0.2, "diffusers"), drawn(2, against="diffusers")])
    words = ["report", "--output", str(tmp_path), "--document", str(document)]
    assert cli.main([*words, "--check"]) == 1
    assert "is not what the records say" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert cli.main([*words, "--check"]) == 0
    assert "| 100 ms |" in document.read_text()
    assert OURS in document.read_text()

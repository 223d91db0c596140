"""The sub-command: what it says, what it refuses, and what it leaves."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, running
from diffusion_rt.bench.flags import LACKING
from diffusion_rt.bench.records import OURS, append, read
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


@pytest.mark.parametrize("name", ["end-to-end", "stages", "startup", "kernels", "export", "build"])
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


def test_the_examples_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^  diffusion-rt bench ((?!BENCHMARK).+)$", cli.HELP, re.MULTILINE)
    assert {line.split()[0] for line in lines} >= set(cli.BENCHMARKS) - {"startup"}
    for line in lines:
        name, *words = shlex.split(re.sub(r" {2,}\(.*\)$", "", line))
        function = cli.BENCHMARKS[name][0]

        def stop(*_: object, **named: object) -> None:
            raise InterruptedError

        # What follows the reading of the flags is not for this test.
        for first in ("_check_peers", "_require", "_origin", "_subject_and_cases"):
            monkeypatch.setattr(cli, first, stop)
        for first in ("bench.kernels.check", "bench.bare.strip", "engines.model_folder.open_model"):
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
            "--against: step knows diffusers and compile, not trt",
        ),
        (["stages", "--against", "ort"], "--against ort: that is the engine that is measured"),
        (["kernels", "--model", "MODEL"], "add --sizes"),
        (["report", "--output", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, exported_model: ExportedModel) -> None:
    model = str(exported_model("plain"))
    with pytest.raises(BadInput, match=message):
        cli.main([model if word == "MODEL" else word for word in words])


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


def test_our_own_time_is_measured_and_kept(
    exported_model: ExportedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = exported_model("plain")
    flags = ["--sizes", "32x24", "--steps", "3", "--repeats", "2", "--warm-up", "0"]
    words = ["--model", str(model), "--engine", "null", "--threads", "1", *flags]
    assert cli.main(["stages", *words, "--output", str(tmp_path)]) == 0
    records = {record.measure: record for record in read(tmp_path)}
    own = records["own"]
    assert own.spread is not None
    assert own.spread.n == 2 * (3 - 1)
    assert own.setting["engine"] == "null"
    assert own.setting["size"] == "32x24"
    assert own.peak_rss is not None
    assert str(model.parent) not in own.command
    assert "--engine null" in own.command
    assert len(capsys.readouterr().out.splitlines()) == len(records)


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

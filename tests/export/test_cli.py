"""The sub-command: what it prints, where it writes, what it says when it cannot."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.export import cli, hub, pipeline
from support.checkpoints import MakeCheckpoint
from support.tracing import Tracer


@pytest.fixture(autouse=True)
def fast(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export", partial(pipeline.export, tracer=tracer))


def test_an_export_in_place(checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint()
    assert main(["export", str(folder), "--dtype", "float32"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["text_encoder", "float32"]
    assert float(lines[0].split()[2]) < 1e-5
    assert lines[-1].startswith(f"{folder}: 7 graphs, ")
    open_model(folder)


def test_a_summary_for_machines(
    checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = checkpoint(), tmp_path / "out"
    arguments = [str(folder), "--output", str(output), "--no-check", "--format", "json"]
    assert main(["export", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["folder"] == str(output)
    assert found["graphs"]["unet_step"] == ["unet_step.float32.onnx", "unet_step.float16.onnx"]
    assert found["copied_bytes"] > 100_000
    assert found["checked"] == []


def test_a_size_is_said_before_copying(
    checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint()), "--output", str(tmp_path / "out"), "--no-check"]
    assert main(["export", *arguments]) == 0
    assert capsys.readouterr().err.startswith("copying 0.")


def test_a_name_on_the_hub_goes_to_a_folder_here(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("cache")
    monkeypatch.setattr(hub, "download", lambda name, variant: folder)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "owner/tiny-xl", "--no-check", "--dtype", "float16"]) == 0
    assert open_model(tmp_path / "tiny-xl").manifest.name == "tiny-xl"
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "CHECKPOINT is missing"),
        (["nowhere"], "nowhere: no such folder"),
        (["a", "b"], "one argument too many"),
        (["a", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["a", "--ouput", "b"], "did you mean --output?"),
        (["a", "--variant", "../x"], "wants a word such as fp16"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_links_want_another_folder(
    checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint()
    file = folder / "vae/config.json"
    file.rename(tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    assert main(["export", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "holds symbolic links, such as vae/config.json" in err
    assert "--output DIR" in err


@pytest.mark.parametrize("package", ["torch", "diffusers", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == package else find(name))
    assert main(["export", "nowhere"]) == 1
    err = capsys.readouterr().err
    assert f"{package} is not installed" in err
    extra = "cpu" if package == "onnxruntime" else "export"
    assert f"pip install 'diffusion-rt[{extra}]'" in err
    assert ("gigabytes of CUDA" in err) == (extra == "export")
    assert err.count("\n") == 1


def test_no_check_needs_no_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        cli, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert main(["export", "nowhere", "--no-check"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from diffusion_rt.__main__ import main\n"
        "assert main(['export', '--help']) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnx', 'numpy', 'rich'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout


class Terminal:
    """Standard error as a terminal."""

    def __init__(self) -> None:
        self.text = ""
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_bars_show_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with cli._progress(quiet=False) as report:
        report("hashing", 0, 0)
        report("hashing", 1_500_000_000, 3_000_000_000)
        report("tracing", 2, 5)
    assert "1.5 GB of 3.0 GB" in terminal.text
    assert "tracing the networks" in terminal.text
    assert "2 of 5" in terminal.text

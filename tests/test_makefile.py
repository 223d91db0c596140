"""Set-up by make: the prompt reaches Python as typed, and half an environment is none."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROMPTS = [
    "a large red circle",
    "",
    "-",
    "--steps",
    "it's \"quoted\" 'twice'",
    "$(shell touch made) $(HOME) ${HOME} $HOME $$ $@ $5 $",
    "`touch made`; touch made | touch made & touch made > made",
    "$(touch made)",
    "a # b \\# c \\",
    "two\nlines\n\nand a tab\there",
    "100 % * ? [a-z] ~ ! {x,y} a=b:=c",
    "灯台 🗼 (red:1.3) \\(x\\) BREAK é",
    "x" * 50_000,
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the Makefile with an environment whose command writes down its arguments."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command = tmp_path / ".venv" / "bin" / "diffusion-rt"
    command.parent.mkdir(parents=True)
    command.write_text(
        f"#!{sys.executable} -S\nimport json, sys\njson.dump(sys.argv[1:], open('argv', 'w'))\n"
    )
    command.chmod(0o755)
    (tmp_path / ".venv" / "complete").touch()
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    kept.pop("PROMPT", None)
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def prompt_of(folder: Path) -> str:
    *before, last = json.loads((folder / "argv").read_text())
    assert before == ["generate", "--output", "pictures/"]
    assert isinstance(last, str)
    return last.removeprefix("--prompt=")


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_the_prompt_reaches_python_as_typed(prompt: str, project: Path) -> None:
    done = make(project, "picture", f"PROMPT={prompt}")
    assert done.returncode == 0, done.stderr
    assert prompt_of(project) == prompt
    done = make(project, "picture", PROMPT=prompt)
    assert done.returncode == 0, done.stderr
    assert prompt_of(project) == prompt
    assert not (project / "made").exists()


def test_without_a_prompt_there_is_one(project: Path) -> None:
    assert make(project, "picture").returncode == 0
    assert prompt_of(project) == "a large red circle on a white background"


def fake_python(folder: Path, *, fails_at: str) -> str:
    """A python3 that makes empty environments and fails at the arguments named."""
    script = folder / "python3"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{fails_at}*) exit 1;; esac\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
        'echo "$@" >> calls\n'
    )
    script.chmod(0o755)
    return f"PYTHON={script}"


@pytest.mark.parametrize(
    ("fails_at", "message"),
    [
        ("version_info", "Python 3.11 or newer is needed"),
        ("ensurepip", "cannot make environments"),
    ],
)
def test_what_is_missing_is_named_with_the_apt_line(
    fails_at: str, message: str, project: Path
) -> None:
    done = make(project, "test", fake_python(project, fails_at=fails_at))
    assert done.returncode != 0
    assert message in done.stderr
    assert "sudo apt-get install make python3 python3-venv" in done.stderr
    assert not (project / ".venv-test").exists()


def test_an_interrupted_set_up_is_begun_again(project: Path) -> None:
    broken = make(project, ".venv-test/complete", fake_python(project, fails_at="--editable"))
    assert broken.returncode != 0
    assert (project / ".venv-test").exists()
    assert not (project / ".venv-test" / "complete").exists()

    (project / ".venv-test" / "left over").touch()
    again = make(project, ".venv-test/complete", fake_python(project, fails_at="nothing"))
    assert again.returncode == 0, again.stderr
    assert (project / ".venv-test" / "complete").exists()
    assert not (project / ".venv-test" / "left over").exists()
    calls = (project / "calls").read_text()
    assert "--constraint constraints.txt --no-build-isolation --editable .[dev]" in calls


def test_set_up_is_done_once_and_again_when_versions_change(project: Path) -> None:
    python = fake_python(project, fails_at="nothing")
    assert make(project, ".venv/complete", python).returncode == 0
    assert not (project / "calls").exists()
    later = time.time() + 10
    os.utime(project / "constraints.txt", (later, later))
    assert make(project, ".venv/complete", python).returncode == 0
    assert ".[cpu]" in (project / "calls").read_text()


def test_help_names_every_target(project: Path) -> None:
    text = make(project).stdout
    assert all(f"make {target}" in text for target in ("picture", "test", "format", "clean"))

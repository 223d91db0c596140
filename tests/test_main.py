"""Exit statuses, one-line errors and the streams of the command."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import diffusion_rt.__main__ as command
from diffusion_rt import __version__
from diffusion_rt.command import Partly
from diffusion_rt.engines.errors import BadInput, Fault

Standin = Callable[[BaseException | Callable[[Sequence[str]], int]], None]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    """Put a function, or one that raises, in the place of `generate`."""

    def put(what: BaseException | Callable[[Sequence[str]], int]) -> None:
        def run(argv: Sequence[str]) -> int:
            if isinstance(what, BaseException):
                raise what
            return what(argv)

        module = type(sys)("standin")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "standin", module)
        monkeypatch.setitem(command.COMMANDS, "generate", ("standin:run", ""))

    return put


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BadInput("width=7 is bad"), 2, "diffusion-rt: error: width=7 is bad"),
        (Fault("the VAE failed"), 1, "diffusion-rt: error: the VAE failed"),
        (KeyboardInterrupt(), 130, "diffusion-rt: interrupted"),
        (MemoryError(), 1, "diffusion-rt: error: out of memory; try fewer --images"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.png"),
            2,
            "diffusion-rt: error: a.png: no space left on device",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"b.png"), 2, "b.png: permission"),
        (OSError(errno.EIO, "Input/output error", "c"), 1, "c: input/output error"),
        (OSError("told in words"), 1, "OSError: told in words; this is a bug"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
            1,
            "torch is not installed; run: pip install 'diffusion-rt[export]'",
        ),
        (ModuleNotFoundError("x", name="onnxruntime"), 1, "pip install 'diffusion-rt[cpu]'"),
        (ZeroDivisionError("by\x1b[31m\nzero"), 1, r"ZeroDivisionError: by\x1b[31m\nzero; this"),
    ],
)
def test_a_failure_is_one_line_and_a_status(
    error: BaseException,
    status: int,
    line: str,
    standin: Standin,
    capsys: pytest.CaptureFixture[str],
) -> None:
    standin(error)
    assert command.main(["generate"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert len(err.strip().splitlines()) == 1

    assert command.main(["generate", "--format", "json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["status"] == status
    assert len(out.splitlines()) == 1


def test_a_traceback_is_shown_to_those_who_ask(
    standin: Standin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    standin(ZeroDivisionError("by zero"))
    command.main(["generate"])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv(command.TRACEBACK, "1")
    command.main(["generate"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate"], "'genrate' is no command of diffusion-rt; did you mean generate?"),
        (["\x1b[2J"], r"'\x1b[2J' is no command of diffusion-rt; one of generate, export"),
    ],
)
def test_an_unknown_command_names_the_nearest(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in command.COMMANDS)
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffusion-rt {__version__}\n"
    assert command.main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_every_command_exists_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in command.COMMANDS:
        assert command.main([name, "--help"]) == 0, name
        assert f"diffusion-rt {name}" in capsys.readouterr().out


def run(code: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        ["/bin/sh", "-c", code, "sh", sys.executable],
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path("src").absolute())},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        **options,
    )


def test_a_reader_who_leaves_is_no_error() -> None:
    done = run('"$1" -m diffusion_rt generate --help | true')
    assert (done.returncode, done.stderr) == (0, "")


def test_full_and_closed_streams() -> None:
    full = run('"$1" -m diffusion_rt --help >/dev/full')
    assert full.returncode == 2
    assert full.stderr == "diffusion-rt: error: no space left on device\n"
    closed = run('"$1" -m diffusion_rt --help >&- 2>&-')
    assert closed.returncode == 0
    mute = run('"$1" -m diffusion_rt inspect nothing 2>/dev/full')
    assert mute.returncode == 2


def test_what_was_done_is_told_beside_the_failure(
    standin: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: Sequence[str]) -> int:
        raise Partly(images=["a.png"]) from KeyboardInterrupt()

    standin(run)
    assert command.main(["generate", "--format=json"]) == 130
    told = json.loads(capsys.readouterr().out)
    assert told == {"error": "interrupted", "status": 130, "images": ["a.png"]}


def test_a_name_that_is_no_unicode_can_be_told() -> None:
    done = run('LC_ALL=C "$1" -m diffusion_rt inspect "$(printf \'/tmp/no\\377\')"')
    assert done.returncode == 2
    assert done.stderr.startswith("diffusion-rt: error: ")
    assert len(done.stderr.splitlines()) == 1

"""The command `diffusion-rt`: each sub-command is one function, imported when it is named."""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from diffusion_rt import __version__
from diffusion_rt.command import Partly, plain
from diffusion_rt.engines.errors import BadInput, Fault

# Sub-command -> where it lives, and what it does.
COMMANDS = {
    "generate": ("diffusion_rt.runtime.cli:generate", "draw pictures from a prompt"),
    "export": ("diffusion_rt.export.cli:main", "turn a checkpoint into ONNX graphs"),
    "build": ("diffusion_rt.engines.cli:main", "build engines for the GPU at hand"),
    "inspect": ("diffusion_rt.runtime.cli:inspect", "say what a model folder or a PNG holds"),
    "doctor": ("diffusion_rt.runtime.cli:doctor", "say what this machine has and what it lacks"),
    "bench": ("diffusion_rt.bench.cli:main", "measure, against diffusers and torch.compile"),
}

# Module -> the extra that brings it.
EXTRAS = {
    "onnxruntime": "cpu",
    "tensorrt": "trt",
    "torch": "export",
    "diffusers": "export",
    "transformers": "export",
    "accelerate": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "huggingface_hub": "export",
}
# Errors of the system that the user can mend by another name, more room or other permissions.
MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
TRACEBACK = "DIFFUSION_RT_TRACEBACK"

HELP = """usage: diffusion-rt COMMAND ...

Stable Diffusion XL without PyTorch at run time.

commands:
{commands}

  diffusion-rt COMMAND --help   all flags of a command, with examples
  diffusion-rt --version

A first picture, from the small model that ships:
  diffusion-rt generate "a large red circle on a white background"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status: 0, 2 for bad input, 1 for a fault, 130 for Ctrl-C.

    A failure is one line on standard error, or one JSON object on standard output where the
    arguments ask for `--format json`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        with _terminated_politely():
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader had enough, as in `… | head`
        _abandon_output()
        return 128 + signal.SIGPIPE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        done = error.done if isinstance(error, Partly) else {}
        status, message = explain(error)
        try:
            _tell(message, status, done, as_json=_wants_json(arguments))
            sys.stdout.flush()
        except OSError:  # standard output is full or gone; nothing is left to tell it to
            _abandon_output()
        return status


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", ""):
        commands = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
        print(HELP.format(commands=commands), end="", file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        print(f"diffusion-rt {__version__}")
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        way_out = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        raise BadInput(f"{name!r} is no command of diffusion-rt; {way_out}")
    module, function = COMMANDS[name][0].split(":")
    command: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return command(arguments[1:])


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and one line for what ended a command."""
    match error:
        case Partly(__cause__=BaseException() as cause):
            return explain(cause)
        case BadInput():
            return 2, str(error)
        case Fault():
            return 1, str(error)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted"
        case MemoryError():
            return 1, "out of memory; try fewer --images, or a smaller --width and --height"
        case ModuleNotFoundError(name=str(name)) if not name.startswith("diffusion_rt"):
            package = name.split(".")[0]
            extra = f"[{EXTRAS[package]}]" if package in EXTRAS else ""
            return 1, f"{package} is not installed; run: pip install 'diffusion-rt{extra}'"
        case OSError(errno=int(number), strerror=str(reason)):
            place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            return 2 if number in MENDABLE else 1, f"{place}{reason.lower()}"
    return 1, (
        f"{type(error).__name__}: {error}; this is a bug of diffusion-rt: "
        f"set {TRACEBACK}=1 to see where, and report it"
    )


def _tell(message: str, status: int, done: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message, "status": status, **done}))
    elif status == 128 + signal.SIGINT:
        print(f"\ndiffusion-rt: {message}", file=sys.stderr)
    else:
        print(f"diffusion-rt: error: {plain(message)}", file=sys.stderr)


class Unfailing:
    """Standard error, of which nothing is lost but words where it is full or gone."""

    def __init__(self, stream: TextIO) -> None:
        """All but writing is as the stream has it."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, where that can be."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_streams() -> None:
    """Streams that take any text in any locale, and exist where the caller closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (open until the end)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if name == "stderr":
                sys.stderr = cast(TextIO, Unfailing(stream))


def _abandon_output() -> None:
    """Drop what standard output still holds, which Python would try to write once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wants_json(arguments: list[str]) -> bool:
    """Whether `--format json` was asked for, told without a parser: it may be what failed."""
    return "--format=json" in arguments or ("--format", "json") in pairwise(arguments)


@contextmanager
def _terminated_politely() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that temporary files are removed."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())

"""The flags of the benchmarks, as data, and the command line that a record keeps of them."""

import argparse
import math
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_rt.bench.architectures import ARCHITECTURES
from diffusion_rt.command import Parser, shortened
from diffusion_rt.engines.errors import BadInput

ENGINES = ("ort", "trt", "native")  # of ours, beside the one that is measured
NULL = "null"  # computes nothing, on the host
BINDINGS = "idle-cuda"
# The loop of a GPU over a driver that does nothing, and what is then timed.
IDLE = {"idle": "our own code", BINDINGS: "our own code and the driver's real bindings"}
PEERS = ("diffusers", "compile", *ENGINES)
DEVICES = ("cpu", "cuda")
RESULTS = Path(__file__).resolve().parent / "results"  # there in a checkout
LONGEST = 300  # characters of a command in a record


@dataclass(frozen=True, slots=True)
class Flag:
    """How one flag is read, what its value is called, what it means and what it is if left out.

    A flag that has no value is there or not. `%(default)s` in `help` is what the benchmark takes.
    """

    read: Callable[[str], Any] | None
    value: str
    help: str
    default: Any = None

    def add(self, parser: argparse.ArgumentParser, name: str) -> None:
        """Have a parser read it."""
        if self.read is None:
            parser.add_argument(f"--{name}", action="store_true", help=self.help)
            return
        parser.add_argument(
            f"--{name}", type=self.read, metavar=self.value, help=self.help, default=self.default
        )


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number between these."""

    def read(text: str) -> int:
        value = int(text) if text.isdecimal() and len(text) < 20 else least - 1
        if not least <= value <= most:
            raise _wrong(text, f"no whole number from {least} to {most}")
        return value

    return read


def several(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads values with commas between them."""
    return lambda text: [read(part.strip()) for part in text.split(",")]


def size(text: str) -> tuple[int, int]:
    """Reads a width and a height in pixels."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise _wrong(text, "no size; write WIDTHxHEIGHT, such as 128x128")
    return int(parts[0]), int(parts[1])


def scale(text: str) -> float:
    """Reads a guidance scale."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise _wrong(text, "no number from 0 to 100")
    return value


def peer(text: str) -> str:
    """Reads the name of a peer."""
    if text not in PEERS:
        raise _wrong(text, f"no peer; of {', '.join(PEERS)}")
    return text


def architecture(text: str) -> str:
    """Reads the name of an architecture."""
    if text not in ARCHITECTURES:
        raise _wrong(text, f"no architecture; of {', '.join(ARCHITECTURES)}")
    return text


def device(text: str) -> str:
    """Reads the name of a device."""
    if text not in DEVICES:
        raise _wrong(text, f"no device; of {', '.join(DEVICES)}")
    return text


def _refusing(why: str) -> Callable[[str], Any]:
    """Reads nothing."""

    def read(text: str) -> Any:
        raise argparse.ArgumentTypeError(f"not taken here: {why}")

    return read


def _wrong(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{shortened(text)!r} is {what}")


MODEL = "default: the model's own"
FLAGS = {
    "model": Flag(Path, "DIR", "an exported model; default: the one shipped"),
    "against": Flag(
        several(peer),
        "NAMES",
        f"of {', '.join(PEERS)}; compile takes minutes, and on a CPU g++, ort is ONNX Runtime by "
        "itself; default: diffusers",
        ["diffusers"],
    ),
    "sizes": Flag(several(size), "WIDTHxHEIGHT,…", MODEL),
    "batches": Flag(several(whole(1, 1000)), "N,…", "numbers of images; default: 1", [1]),
    "axes": Flag(
        None,
        "",
        "not every combination: each size with the first of --batches, and each of --batches at "
        "the model's own size",
    ),
    "case-by-case": Flag(
        None,
        "",
        "each size and number of images to its end before the next, where together they fill the "
        "memory; default: all of them in each turn",
    ),
    "steps": Flag(several(whole(1, 1000)), "N,…", MODEL),
    "samplers": Flag(several(str), "NAME,…", MODEL),
    "guidance-scale": Flag(scale, "SCALE", f"1 is off; {MODEL}"),
    "prompt": Flag(str, "TEXT", "default: one about two shapes"),
    "seed": Flag(whole(0, 2**32 - 1), "SEED", "default: %(default)s", 7),
    "engine": Flag(
        str,
        "NAME",
        "of ours; null computes nothing, which leaves our own time; idle and idle-cuda the same of "
        "a step captured on a GPU, over a driver that does nothing, idle-cuda by the driver's real "
        "bindings (needs gcc); default: ort",
    ),
    "device": Flag(
        device, "NAME", "cpu, or cuda for a GPU, in float16 but for the reference; default: cpu"
    ),
    "architecture": Flag(
        architecture, "NAME", f"of the generated checkpoint, of {', '.join(ARCHITECTURES)}"
    ),
    "repeats": Flag(
        whole(1, 100_000), "N", "timed runs of each contender; default: %(default)s", 10
    ),
    "warm-up": Flag(
        whole(0, 100_000), "N", "runs before these, not timed; default: %(default)s", 2
    ),
    "threads": Flag(
        whole(1, 1024),
        "N",
        "of ONNX Runtime and of torch; default: all cores",
        len(os.sched_getaffinity(0)),
    ),
}
# Paths, of which only the model's name is told, and what stands there as the flags it is short for.
UNTOLD = ("model", "output", "keep", "setting")


# Of the flags that benchmarks share those that one has no use for, and why: refused by name.
ONE_PICTURE = "it draws one picture; end-to-end draws several together"
ONE_STEP = "it times single evaluations of the UNet; stages times all that is around them"
ONE_KERNEL = "it runs kernels, which know nothing of it"
NO_PICTURE = "it draws nothing"
CASES = ("sizes", "batches", "steps", "samplers")
LACKING = {
    "startup": {"batches": ONE_PICTURE},
    "step": {"steps": ONE_STEP, "samplers": ONE_STEP},
    "operators": {
        "against": "ONNX Runtime's profiler sees ours alone; stages measures others beside us",
        "steps": ONE_STEP,
        "samplers": ONE_STEP,
    },
    "kernels": {
        "against": "PyTorch's own kernels are measured beside ours by bench/gpu.py",
        "steps": ONE_KERNEL,
        "samplers": ONE_KERNEL,
    },
    "export": {
        "against": "nobody else exports these graphs; export compares what they compute by itself",
        **dict.fromkeys(CASES, NO_PICTURE),
    },
    "chip": dict.fromkeys(("model", "against", *CASES), "it measures the processor, not a model"),
    "build": {
        "against": "nobody else builds these engines; end-to-end measures what they are worth",
        "sizes": "engines are built for --buckets",
        "batches": "engines are built for --batch",
        **dict.fromkeys(("steps", "samplers"), NO_PICTURE),
    },
}


def parser_of(benchmark: str, description: str, names: Iterable[str]) -> Parser:
    """A parser of these flags, and of where the records lie."""
    lacking = LACKING.get(benchmark, {})
    told = "".join(f"\n  --{name}: {why}" for name, why in lacking.items())
    parser = Parser(
        prog=f"diffusion-rt bench {benchmark}",
        usage=f"diffusion-rt bench {benchmark} [flags]",
        description=description,
        epilog=f"not taken, though others take it:{told}" if told else None,
    )
    for name in names:
        FLAGS[name].add(parser, name)
    for name, why in lacking.items():
        never = argparse.SUPPRESS  # neither told nor there
        parser.add_argument(f"--{name}", type=_refusing(why), help=never, default=never)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=RESULTS if RESULTS.is_dir() else Path(),
        help="the folder of records; default: bench/results of a checkout, else this one",
    )
    return parser


def command_of(benchmark: str, found: argparse.Namespace, model: str | None) -> str:
    """The command as anybody can type it: of paths none, of the model the name if it was given.

    Raises BadInput where it is too long to be kept.
    """
    words = ["diffusion-rt", "bench", benchmark]
    if model is not None:
        words += ["--model", model]
    for name, value in vars(found).items():
        if name in UNTOLD or value is None or value is False or value == []:
            continue
        flag = f"--{name.replace('_', '-')}"
        text = "" if value is True else _spelt(value)
        words += [f"{flag}={text}"] if text[:1] == "-" else [flag, text] if text else [flag]
    command = shlex.join(words)
    if len(command) > LONGEST:
        raise BadInput(f"the command is longer than {LONGEST} characters; make several of it")
    return command


def _spelt(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spelt, value))
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

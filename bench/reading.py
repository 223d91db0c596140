"""What the sub-commands of `bench` share: flags as they are read, what is measured, who may run."""

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_rt.bench.flags import parser_of
from diffusion_rt.bench.settings import SETTINGS, expanded
from diffusion_rt.engines.errors import BadInput

if TYPE_CHECKING:
    from diffusion_rt.bench.case import Case
    from diffusion_rt.bench.records import Origin
    from diffusion_rt.bench.subject import Subject

ABOUT = {
    "end-to-end": "prompt to picture, engines open and warm",
    "stages": "the same, stage by stage",
    "step": "the UNet alone, for models of which one fills the memory",
    "operators": "a step by kind of operator, as ONNX Runtime's profiler has it",
    "startup": "a fresh process: time to the first picture, memory, installed size",
    "export": "checkpoint to ONNX: time, memory, bytes written",
    "chip": "what this processor can do at most: products and a copy",
    "checkpoint": "no measurement: a checkpoint of generated weights",
    "build": "engines for this chip: time, size, memory; and again, with nothing to do",
    "kernels": "each GPU kernel by itself: right, then bytes and operations a second",
    "tactics": "no measurement: the table of tactics that ships, from a GPU run or reckoned",
    "graphs": "no measurement: an exported model without its generated weights",
    "all": "every CPU record of README's tables, in half an hour on two cores",
    "report": "no measurement: tables and plots from the records",
}
# Names of flags: what a case is, and how often and on how many threads it runs.
CASE = ("sizes", "batches", "steps", "samplers", "guidance-scale", "prompt", "seed")
RUNS = ("repeats", "warm-up", "threads")

Setting = dict[str, str | int | float]


def read(
    benchmark: str,
    argv: Sequence[str],
    *names: str,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    defaults: "dict[str, Any] | None" = None,
) -> argparse.Namespace:
    """The flags of a benchmark as given; a `--setting` counts as the flags it stands for."""
    parser = parser_of(benchmark, ABOUT[benchmark], names)
    add(parser)
    parser.set_defaults(**(defaults or {}))
    takes = {name for _, flags in SETTINGS.values() for name in flags} & set(names)
    if takes:
        parser.add_argument(
            "--setting", metavar="NAME,…", help=f"of {', '.join(SETTINGS)}: flags that go together"
        )
        argv = expanded(argv, takes)
    return parser.read(argv)


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Have a parser read where to keep what is made."""
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="a new folder for it; the weights of sdxl-base take 7 GB of disk",
    )


def check_new(folder: Path | None) -> None:
    """BadInput where the folder to keep something in is there."""
    if folder is not None and os.path.lexists(folder):
        raise BadInput(f"--keep {folder}: it is there already; name a new folder")


def subject_and_cases(found: argparse.Namespace) -> "tuple[Subject, list[Case]]":
    """What is meant and what is done with it, the open choices made by its manifest."""
    from diffusion_rt.bench.case import PROMPT, cases
    from diffusion_rt.bench.subject import open_subject
    from diffusion_rt.runtime.samplers import sampler_name

    subject = open_subject(found.model)
    names = getattr(found, "samplers", None) or [subject.scheduler]
    scale = found.guidance_scale
    return subject, cases(
        prompt=getattr(found, "prompt", None) or PROMPT,
        sizes=found.sizes or [(subject.width, subject.height)],
        batches=getattr(found, "batches", [1]),
        steps=getattr(found, "steps", None) or [subject.steps],
        samplers=[sampler_name(name) for name in names],
        guidance_scale=subject.guidance_scale if scale is None else scale,
        seed=found.seed,
        own=(subject.width, subject.height) if getattr(found, "axes", False) else None,
    )


def runs(found: argparse.Namespace) -> dict[str, Any]:
    """How often each contender runs."""
    return {"repeats": found.repeats, "warm_up": found.warm_up}


def check_peers(found: argparse.Namespace, *, reference: bool) -> None:
    """BadInput where a peer, or the reference that all are held against, cannot run here."""
    if reference:
        require("torch", "diffusers", "transformers")
    compiles = "compile" in found.against and getattr(found, "device", "cpu") != "cuda"
    if compiles and not any(map(shutil.which, ("g++", "clang++"))):
        raise BadInput("--against compile: torch.compile needs a C++ compiler; install g++")
    ours = getattr(found, "engine", None)
    if ours in found.against and ours != "ort":
        raise BadInput(
            f"--against {ours}: that is the engine that is measured, and nobody else here drives "
            "the same library; leave it out, or measure another with --engine"
        )


def require(*modules: str) -> None:
    """BadInput where one of these is not installed."""
    from diffusion_rt.bench import running

    running.require(*modules)


def origin(benchmark: str, found: argparse.Namespace, subject: "Subject | None") -> "Origin":
    """What all records of this run share; of the subject the name, if it was asked for."""
    from diffusion_rt.bench.running import origin_of

    given = getattr(found, "model", None) is not None
    return origin_of(benchmark, found, subject.name if subject is not None and given else None)


def setting(subject: "Subject", found: argparse.Namespace, case: "Case") -> Setting:
    """What the records of a case are of."""
    return {"model": subject.name, **case.setting, "threads": found.threads}

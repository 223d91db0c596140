"""The sub-command `export`: a checkpoint in, a model folder out."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_rt.command import Parser, plain
from diffusion_rt.engines.errors import BadInput, Fault

if TYPE_CHECKING:
    from diffusion_rt.export.checkpoint import Checkpoint
    from diffusion_rt.export.pipeline import Exported

NEEDED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")

EXAMPLES = """examples:
  diffusion-rt export ./sdxl                            (the graphs stand beside its own files)
  diffusion-rt export ./sdxl --output ./exported
  diffusion-rt export stabilityai/stable-diffusion-xl-base-1.0 --output ./sdxl
  diffusion-rt export ./sdxl --dtype float16 --no-check

The weights are not converted: the graphs point into the checkpoint's safetensors, and diffusers
still loads the folder. Exit status: 0, 2 for bad input, 1 for a fault, 130 after Ctrl-C.
"""
STAGES = {
    "comparing": "comparing with what is there",
    "copying": "copying the checkpoint",
    "tracing": "tracing the networks",
    "hashing": "hashing the files",
    "checking": "checking against torch",
}

Report = Callable[[str, int, int], None]


def main(argv: Sequence[str]) -> int:
    """Export one checkpoint; the exit status. Raises BadInput and Fault."""
    parser = Parser(
        prog="diffusion-rt export",
        usage="diffusion-rt export CHECKPOINT [--output DIR] [flags]",
        description="Turn an SDXL checkpoint into standard ONNX graphs over its own weights.",
        epilog=EXAMPLES,
    )
    add_arguments(parser)
    found = parser.read(argv)
    _require_packages(check=not found.no_check)
    _silence_libraries()
    started = time.perf_counter()
    checkpoint, output = _places(found)
    from diffusion_rt.export.pipeline import PRECISIONS, export

    with _progress(quiet=found.format == "json") as report:
        exported = export(
            checkpoint,
            output,
            precisions=(found.dtype,) if found.dtype else PRECISIONS,
            check=not found.no_check,
            report=report,
        )
    seconds = time.perf_counter() - started
    if found.format == "json":
        print(json.dumps(_summary(exported, seconds), indent=1))
    else:
        _tell(exported, seconds)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of `export`."""
    parser.add_argument(
        "CHECKPOINT", help="a folder in diffusers layout, or a name on the hub such as owner/model"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the model goes, with copies of the checkpoint's files; default: the "
        "checkpoint's own folder, for a name on the hub a folder here of the model's name",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="write the graphs for this arithmetic only, and remove those for the other; "
        "default: for both",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="take the weights with this word in their names, such as fp16",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the graphs with torch"
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json prints one object, an error included, on standard output",
    )


def _require_packages(*, check: bool) -> None:
    """Fault naming the extra where a package is missing, before anything heavy is imported."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Fault(
            f"{missing[0]} is not installed; run: pip install 'diffusion-rt[export]' (torch from "
            "the default index brings gigabytes of CUDA; for a machine without a GPU take it from "
            "PyTorch's index for CPUs)"
        )
    if check and find_spec("onnxruntime") is None:
        raise Fault(
            "onnxruntime is not installed, which checks the graphs; run: pip install "
            "'diffusion-rt[cpu]', or export with --no-check"
        )


def _silence_libraries() -> None:
    """Keep the libraries' own notes and bars off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("torch").setLevel(logging.ERROR)


def _places(found: argparse.Namespace) -> tuple["Checkpoint", Path]:
    """The checkpoint that is meant and the folder for its export."""
    from diffusion_rt.export.checkpoint import open_checkpoint
    from diffusion_rt.export.hub import download, is_hub_name
    from diffusion_rt.export.place import obstacle_in_place

    if is_hub_name(found.CHECKPOINT):
        name = found.CHECKPOINT.rpartition("/")[2]
        output = found.output or Path(name)
        folder = download(found.CHECKPOINT, variant=found.variant)
        return open_checkpoint(folder, variant=found.variant, name=name), output
    checkpoint = open_checkpoint(Path(found.CHECKPOINT), variant=found.variant)
    if found.output is None and (reason := obstacle_in_place(checkpoint)):
        raise BadInput(
            f"{found.CHECKPOINT} {reason}; name a folder for the model and its copies: --output DIR"
        )
    return checkpoint, found.output or checkpoint.folder


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report]:
    """Bars on standard error where somebody is looking at it; sizes are said before copying."""

    def note(stage: str, done: int, total: int) -> None:
        if stage == "copying" and done == 0 and total and not quiet:
            print(f"copying {_size(total)} beside the graphs", file=sys.stderr)

    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if not total:
            return
        big = stage in ("comparing", "copying", "hashing")
        amount = f"{_size(done)} of {_size(total)}" if big else f"{done} of {total}"
        if stage not in tasks:
            tasks[stage] = bars.add_task(STAGES[stage], total=total, amount=amount)
        bars.update(tasks[stage], completed=done, total=total, amount=amount)

    with bars:
        yield report


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _tell(exported: "Exported", seconds: float) -> None:
    """The summary for people."""
    manifest = exported.manifest
    for outcome in exported.outcomes:
        error = f"{outcome.error:.1e}" if outcome.error is not None else outcome.remark
        print(f"{outcome.graph:<15} {outcome.precision:<8} {error}")
    if exported.outcomes:
        print("(relative difference from torch in float32)")
    if exported.unused:
        names = ", ".join(plain(name) for name in exported.unused[:3])
        more = f" and {len(exported.unused) - 3} more" if len(exported.unused) > 3 else ""
        print(f"not used by any graph: {names}{more}")
    files = [v.file for variants in manifest.graphs.values() for v in variants.values()]
    size = sum(manifest.files[file].size for file in files)
    print(f"{exported.folder}: {len(files)} graphs, {_size(size)}, in {seconds:.0f} s")


def _summary(exported: "Exported", seconds: float) -> dict[str, object]:
    """The summary for machines."""
    graphs = exported.manifest.graphs
    return {
        "folder": str(exported.folder),
        "graphs": {name: [v.file for v in variants.values()] for name, variants in graphs.items()},
        "copied_bytes": exported.copied_bytes,
        "unused_tensors": list(exported.unused),
        "checked": [
            {"graph": o.graph, "dtype": o.precision, "error": o.error, "remark": o.remark}
            for o in exported.outcomes
        ],
        "seconds": round(seconds, 1),
    }

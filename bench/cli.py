"""The sub-command `bench`: what is measured, against whom, and where the records go."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusion_rt.bench import making, racing, reading
from diffusion_rt.bench.settings import listed
from diffusion_rt.command import plain, shortened
from diffusion_rt.engines.errors import BadInput

HELP = """usage: diffusion-rt bench BENCHMARK [flags]

Measure against diffusers, on the same weights, noise, steps and threads. Whoever draws something
else than diffusers in float32 is reported as wrong and not timed.

benchmarks:
{benchmarks}

  diffusion-rt bench BENCHMARK --help   all flags of a benchmark

settings, for `--setting NAME,…` (flags given beside it win):
{settings}

examples:
  diffusion-rt bench end-to-end --against diffusers,compile --repeats 20
  diffusion-rt bench end-to-end --sizes 64x64,128x128,256x256 --batches 1,2,4,8
  diffusion-rt bench end-to-end --model ./sdxl --setting mlperf --device cuda --engine native
  diffusion-rt bench stages --engine null --sizes 1024x1024      (our own time around the engines)
  diffusion-rt bench checkpoint --architecture sd-1.5 --keep ./sd15
  diffusion-rt bench export --architecture sdxl-base --keep ./sdxl
  diffusion-rt bench graphs --model ./sdxl --keep ./graphs       (5 MB, for bench/gpu.py)
  diffusion-rt bench step --model ./sdxl --sizes 512x512 --apart
  diffusion-rt bench operators --sizes 64x64,128x128,256x256     (what a step consists of)
  diffusion-rt bench chip                                        (the roof of the roofline)
  diffusion-rt bench build --model ./sdxl --engine trt --buckets 1024x1024
  diffusion-rt bench kernels --device simulator                  (what is right, without a GPU)
  diffusion-rt bench tactics --measured DIR                      (what bench/gpu.py left in DIR)
  diffusion-rt bench tactics --reckoned h200                     (where no GPU has measured yet)
  diffusion-rt bench all                                         (every CPU record of README)
  diffusion-rt bench report --check
"""


def main(argv: Sequence[str]) -> int:
    """Run one benchmark and keep its records; the exit status. Raises BadInput and Fault."""
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        listed_ = "\n".join(f"  {key:<12}{text}" for key, text in reading.ABOUT.items())
        text = HELP.format(benchmarks=listed_, settings=listed())
        print(text, end="", file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in BENCHMARKS:
        raise BadInput(f"{shortened(name)!r} is no benchmark; one of {', '.join(BENCHMARKS)}")
    # What transformers says of packages that it can do without.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return BENCHMARKS[name](name, argv[1:])


def kernels(benchmark: str, argv: Sequence[str]) -> int:
    """Check and time each GPU kernel by itself."""
    from diffusion_rt.bench.kernels import run

    return run(benchmark, argv)


def everything(benchmark: str, argv: Sequence[str]) -> int:
    """Take all CPU records that the tables are made of; 1 where a benchmark failed."""
    found = reading.read(benchmark, argv)
    reading.require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")

    from diffusion_rt.bench import everything as parts
    from diffusion_rt.bench.running import warn_if_busy
    from diffusion_rt.runtime.memory import available

    def tell(text: str) -> None:
        print(plain(text), flush=True)

    warn_if_busy()
    found.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for line in (*parts.plan(), *parts.doubts(folder, available())):
            tell(line)
        ran = parts.everything(found.output, folder, tell)
    for line in parts.summary(ran):
        tell(line)
    return 1 if any(one.status for one in ran) else 0


def report(benchmark: str, argv: Sequence[str]) -> int:
    """Write the tables of the documents and the plots, from the records alone."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--document",
            type=Path,
            metavar="FILE",
            action="append",
            help="a Markdown file with <!-- bench:NAME --> marks, several times for several; "
            "default: README.md and bench/README.md of the checkout",
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="write nothing; status 1 where a table or a plot is not what the records say",
        )

    found = reading.read(benchmark, argv, add=add)

    from diffusion_rt.bench import machine
    from diffusion_rt.bench.records import read
    from diffusion_rt.bench.report import stale, write

    documents = found.document
    if documents is None:
        root = machine.checkout()
        if root is None:
            raise BadInput("this is no checkout; name the Markdown files: --document FILE")
        documents = [root / "README.md", root / "bench" / "README.md"]
    records = read(found.output)
    if not found.check:
        for path in write(records, documents, found.output / "plots"):
            print(plain(str(path)))
        return 0
    wrong = stale(records, documents, found.output / "plots")
    for path in wrong:
        print(plain(f"{path} is not what the records say; run: diffusion-rt bench report"))
    return 1 if wrong else 0


BENCHMARKS: dict[str, Callable[[str, Sequence[str]], int]] = {
    "end-to-end": racing.draw,
    "stages": racing.draw,
    "step": racing.step,
    "operators": racing.operators,
    "startup": racing.startup,
    "export": making.export,
    "chip": racing.chip,
    "checkpoint": making.checkpoint,
    "build": making.build,
    "kernels": kernels,
    "tactics": making.tactics,
    "graphs": making.graphs,
    "all": everything,
    "report": report,
}

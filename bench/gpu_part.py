"""One part of the GPU run, in a process of its own: a kernel that breaks the device or hangs takes
no other part with it.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from diffusion_rt.bench.gpu_chip import SIMULATOR, NoChip, this_chip
from diffusion_rt.bench.gpu_rows import Outcome, Sink

BINDINGS = "cuda.bindings"
BROKEN = 3  # the exit status of a part that broke and has said so


@dataclass(frozen=True, slots=True)
class Part:
    """What is run, what it needs, and how long it may take."""

    function: str
    seconds: float
    needs: tuple[str, ...] = ()
    proves: bool = True  # whether it says what is right, or only what takes how long
    required: bool = False  # whether all is right only where this was shown
    beside: bool = False  # whether the next parts need not wait for it: it leaves the device alone

    @property
    def broken(self) -> Outcome:
        """What it comes to where it does not come to its end."""
        return "lost" if self.proves else "not run"


DIFFUSERS = ("torch", "diffusers", "transformers", "tokenizers", "PIL")

# The most wanted first: what is right before what is fast, and the step before all other times.
PARTS = {
    "prepare": Part("gpu_prepare:prepare", 240, proves=False, beside=True),
    "chip": Part("gpu_device:facts", 60, required=True),
    "device": Part("gpu_device:layer", 60, (BINDINGS,), required=True),
    "compile": Part("gpu_compile:compile_all", 90, (BINDINGS,)),
    "right": Part("gpu_kernels:check", 90, (BINDINGS,), required=True),
    "fused": Part("gpu_fused:check", 60, (BINDINGS,), required=True),
    "native": Part("gpu_model:native", 200, (BINDINGS,), required=True),
    "denoise": Part("gpu_denoise:denoise", 60, (BINDINGS,), required=True),
    "first": Part("gpu_model:first", 60, (BINDINGS,), proves=False),
    "eager": Part("gpu_against:eager", 100, DIFFUSERS, proves=False),
    "attention": Part("gpu_tactics:attention", 45, (BINDINGS,)),
    "compiled": Part("gpu_against:compiled", 300, DIFFUSERS, proves=False),
    "products": Part("gpu_tactics:products", 90, (BINDINGS,)),
    "convolutions": Part("gpu_tactics:convolutions", 90, (BINDINGS,)),
    "yardsticks": Part("gpu_torch:yardsticks", 150, ("torch",), proves=False),
    "times": Part("gpu_kernels:measure", 60, (BINDINGS,), proves=False),
    "tensorrt": Part("gpu_model:tensorrt", 240, (BINDINGS, "tensorrt"), proves=False),
    "contract": Part("gpu_suite:contract", 120, (BINDINGS,)),
    "tensorrt-tests": Part("gpu_suite:tensorrt", 120, (BINDINGS, "tensorrt")),
    "tests": Part("gpu_suite:kernels", 240, (BINDINGS,)),
}
NAMES = {BINDINGS: "cuda-bindings"}  # as packages are called where modules are called otherwise


def main(argv: Sequence[str]) -> int:
    """Run one part; the exit status is 0 wherever it came to its end."""
    parser = argparse.ArgumentParser(prog="gpu_part")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--device", choices=("cuda", "simulator"), default="cuda")
    parser.add_argument("--command", required=True)
    parser.add_argument("--commit")
    parser.add_argument("--graphs", type=Path)
    found = parser.parse_args(argv)
    simulated = found.device == "simulator"
    part = PARTS[found.part]
    try:
        chip = SIMULATOR if simulated else this_chip()
    except NoChip as error:
        sink = Sink(found.part, SIMULATOR, found.output, found.deadline, found.command)
        sink.not_run(found.part, str(error))
        return 0
    sink = Sink(
        found.part,
        chip,
        found.output,
        found.deadline,
        found.command,
        found.commit,
        graphs=found.graphs,
    )
    for module in part.needs:
        # A simulator stands in for the driver, not for PyTorch.
        if not (simulated and module == BINDINGS) and not importable(module):
            sink.not_run(found.part, f"no {NAMES.get(module, module)}")
            return 0
    return _run(sink, part)


def _run(sink: Sink, part: Part) -> int:
    module, _, name = part.function.partition(":")
    begun = time.monotonic()
    try:
        function: Callable[[Sink], None] = getattr(
            import_module(f"diffusion_rt.bench.{module}"), name
        )
        function(sink)
    except Exception as error:
        traceback.print_exc()
        sink.say(sink.part, part.broken, f"{type(error).__name__}: {error}")
        # A lost device may hang whoever closes things politely.
        sys.stderr.flush()
        os._exit(BROKEN)
    print(f"{sink.part}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    return 0


def importable(module: str) -> bool:
    """Whether a module is there, without loading it."""
    try:
        return find_spec(module) is not None
    except ImportError:  # its parent is not
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The sub-command `kernels`: each kernel of the catalogue by itself, right first and then timed."""

import argparse
import math
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import pairwise

from diffusion_rt.bench import gpu_cases
from diffusion_rt.bench.flags import command_of, parser_of, whole
from diffusion_rt.bench.gpu_case import Case
from diffusion_rt.bench.gpu_chip import SIMULATOR, NoChip, this_chip
from diffusion_rt.bench.gpu_kernels import REPEATS, check, measure
from diffusion_rt.bench.gpu_rows import Row, Sink
from diffusion_rt.bench.gpu_shapes import SDXL
from diffusion_rt.bench.spread import median
from diffusion_rt.bench.unet_alone import network_of
from diffusion_rt.command import plain, shortened
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.kernels.driver import NoDriver

DEVICES = ("cuda", "simulator")
DESCRIPTION = """each kernel by itself: its results against float64, then its time on data that no
cache holds (cold) and on the same data again (warm), bytes and operations a second, and the share
of what this chip can do at most. Without --sizes, at the shapes of SDXL at 1024x1024 and at odd
ones.

examples:
  diffusion-rt bench kernels
  diffusion-rt bench kernels --only 'attention*,gemm*' --sizes 1024x1024,512x512 --batches 1,4
  diffusion-rt bench kernels --device simulator        (without a GPU: what is right, no times)
"""


def run(benchmark: str, argv: Sequence[str]) -> int:
    """Check and time kernels; 1 where one is wrong. BadInput where there is no GPU."""
    parser = parser_of(benchmark, DESCRIPTION, ("model", "sizes", "batches", "guidance-scale"))
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cuda",
        help="simulator: tiny shapes on the host, whose times mean nothing and are not taken",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="PATTERN,…",
        help="kernels by name, as a shell matches files; default: all",
    )
    parser.add_argument(
        "--repeats",
        type=whole(1, 100_000),
        default=REPEATS,
        metavar="N",
        help=f"timed replays of a graph of many launches; default: {REPEATS}",
    )
    found = parser.read(argv)
    chosen = _chosen(found)
    simulated = found.device == "simulator"
    try:
        chip = SIMULATOR if simulated else this_chip()
    except NoChip as error:
        raise BadInput(
            f"kernels: {error}; --device simulator says what is right without one"
        ) from None
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        print(plain(f"{row.outcome:<8}{row.name}: {row.note}"), flush=True)

    output = None if simulated else found.output
    command = command_of(benchmark, found, found.model and found.model.resolve().name)
    sink = Sink(benchmark, chip, output, math.inf, command, tell=tell)
    begun = time.monotonic()
    try:
        check(sink, chosen)
        if not simulated:
            measure(sink, chosen, found.repeats, _peak())
    except NoDriver as error:
        raise BadInput(f"kernels: {error}") from None
    wrong = sum(row.bad for row in rows)
    right = sum(row.outcome == "right" for row in rows)
    print(f"right: {right}, wrong: {wrong}, {time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


def _chosen(found: argparse.Namespace) -> list[Case] | None:
    """The cases that the flags name; None for all."""
    cases: list[Case] | None = None
    if found.model is not None and not found.sizes:
        raise BadInput("--model: kernels of a model are those of a size; add --sizes")
    if found.sizes and found.device != "simulator":
        rows = 1 if found.guidance_scale is not None and found.guidance_scale <= 1 else 2
        network = SDXL if found.model is None else network_of(found.model)
        if network is None:
            raise BadInput(f"--model {found.model}: it has no UNet of SDXL's kind; name another")
        cases = list(
            dict.fromkeys(
                case
                for width, height in found.sizes
                for images in found.batches
                for case in gpu_cases.of_step(width, height, images, rows, network)
            )
        )
    if found.only is None:
        return cases
    every = gpu_cases.cases(tiny=found.device == "simulator") if cases is None else cases
    named = [case for case in every if any(fnmatchcase(case.name, part) for part in found.only)]
    if not named:
        have = ", ".join(dict.fromkeys(case.name for case in every))
        raise BadInput(f"--only {shortened(','.join(found.only))}: no such kernel; of {have}")
    return named


def _peak() -> float:
    """Operations a second of a large half-precision product by PyTorch; infinite without it."""
    if find_spec("torch") is None:
        return math.inf
    import torch

    if not torch.cuda.is_available():
        return math.inf
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
    out = torch.mm(a, b)
    for event in events:
        torch.mm(a, b, out=out)
        event.record()
    torch.cuda.synchronize()
    seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]
    return 2 * side**3 / median(seconds)

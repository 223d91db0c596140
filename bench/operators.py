"""What the operators of a step of the UNet take, kind by kind, as ONNX Runtime's profiler has it.

It says why a figure is what it is: how much of a step is arithmetic that anybody must do, and how
near that comes to what the processor can.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Laps
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.unet_alone import OurUnet
from diffusion_rt.engines.errors import Fault
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.runtime.unet import Unet

STEP = "evaluation"
REST = "rest"
# Of ONNX Runtime's operators those that do the arithmetic, by what is told of them.
KINDS = {
    "products": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"),
    "convolutions": ("Conv", "FusedConv", "NhwcFusedConv"),
    "attention": ("Attention", "MultiHeadAttention"),
}
ARITHMETIC = tuple(KINDS)


class ProfiledUnet(OurUnet):
    """The UNet, of whose step a profile is written when it is closed."""

    def __init__(self, *, model: Path, threads: int, profile: Path) -> None:
        super().__init__(model=model, threads=threads)
        self._engines.pop().close()
        backend = OrtBackend(open_model(model), threads=threads, profile=profile)
        self._engines.append(backend.load("unet_step"))
        self._unet = Unet(*self._engines)


def measured(
    model: Path, cases: Sequence[Case], *, threads: int, repeats: int, warm_up: int, tell: Tell
) -> list[Laps]:
    """For each case the seconds of every evaluation, in all and by kind of operator."""
    with tempfile.TemporaryDirectory() as folder:
        unet = ProfiledUnet(model=model, threads=threads, profile=Path(folder, "profile"))
        for case in cases:
            for turn in range(-warm_up, repeats):
                tell(f"{case}: " + (f"run {turn + 1} of {repeats}" if turn >= 0 else "warm-up"))
                unet.run(case)
        unet.close()
        (path,) = Path(folder).glob("profile*.json")
        runs = by_run(json.loads(path.read_bytes()))
    each = warm_up + repeats
    if len(runs) != each * len(cases):
        raise Fault(f"onnxruntime's profile has {len(runs)} runs, wants {each * len(cases)}")
    found: list[Laps] = []
    for place in range(len(cases)):
        timed = runs[place * each + warm_up : (place + 1) * each]
        found.append({kind: [run[kind] for run in timed] for kind in (STEP, *ARITHMETIC, REST)})
    return found


def by_run(events: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The seconds of each run of a profile's only session: in all, by kind, and what is left.

    Events are those of Chrome's trace format, times in microseconds.
    """
    kinds = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    whole = [event for event in events if event["name"] == "model_run"]
    found = []
    for run in whole:
        start, end = run["ts"], run["ts"] + run["dur"]
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                kind = kinds.get(event["args"]["op_name"])
                if kind is not None and start <= event["ts"] < end:
                    spent[kind] += event["dur"]
        rest = run["dur"] - spent.total()
        told = {STEP: run["dur"], **{kind: spent[kind] for kind in ARITHMETIC}, REST: rest}
        found.append({name: value / 1e6 for name, value in told.items()})
    return found


def records_of(
    origin: Origin,
    laps: Laps,
    setting: Mapping[str, str | int | float],
    work: tuple[int | None, int | None],
) -> list[Record]:
    """The seconds of a step and of each kind; `work` is its operations and bytes at least."""
    flop, nbytes = work
    return [
        origin.record(
            kind,
            OURS,
            setting,
            spread=spread(seconds),
            flop=flop if kind == STEP else None,
            nbytes=nbytes if kind == STEP else None,
        )
        for kind, seconds in laps.items()
    ]

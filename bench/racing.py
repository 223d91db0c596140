"""The sub-commands that take times: of drawing, the UNet, a fresh process, the processor."""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_rt.bench import reading
from diffusion_rt.bench.flags import ENGINES, IDLE, NULL
from diffusion_rt.engines.errors import BadInput

if TYPE_CHECKING:
    from diffusion_rt.bench.contender import Contender
    from diffusion_rt.bench.race import Opener

# The measures that each benchmark of drawing keeps; None keeps all.
KEPT: dict[str, tuple[str, ...] | None] = {"end-to-end": ("picture", "step"), "stages": None}

# Who can run, and where that stands; the reference comes first where only one runs at a time.
OUR_DRAWER = "diffusion_rt.bench.ours:Ours"
ORT_GRAPHS = "diffusion_rt.bench.ort_graphs:OrtGraphs"
DRAWERS = {
    "diffusers": "diffusion_rt.bench.peers:Diffusers",
    "compile": "diffusion_rt.bench.peers:Compiled",
}
UNETS = {
    "diffusers": "diffusion_rt.bench.unet_alone:DiffusersUnet",
    "diffusion-rt": "diffusion_rt.bench.unet_alone:OurUnet",
    "compile": "diffusion_rt.bench.unet_alone:CompiledUnet",
    "ort": "diffusion_rt.bench.unet_alone:OrtUnet",
}


def draw(benchmark: str, argv: Sequence[str]) -> int:
    """Measure drawing pictures, whole or by stage."""
    names = ("model", "against", *reading.CASE, "axes", "case-by-case", "engine", "device")
    found = reading.read(benchmark, argv, *names, *reading.RUNS)
    idle = found.engine in (NULL, *IDLE)
    if idle:
        found.against = []
    if found.engine in IDLE and (benchmark != "stages" or found.device == "cuda"):
        raise BadInput(
            f"--engine {found.engine} leaves our own time in a step on a GPU, without one: "
            f"diffusion-rt bench stages --engine {found.engine}"
        )
    reading.check_peers(found, reference=not idle)
    subject, cases = reading.subject_and_cases(found)
    origin = reading.origin(benchmark, found, subject)

    from diffusion_rt.bench.race import Lane, race, records_of
    from diffusion_rt.bench.records import OURS
    from diffusion_rt.bench.running import keep, telling
    from diffusion_rt.bench.unet_alone import work_of
    from diffusion_rt.bench.worker import Worker

    common: dict[str, Any] = {"model": subject.path, "threads": found.threads}
    cuda = found.device == "cuda"
    theirs = {"device": "cuda", "exact": benchmark == "stages"} if cuda else {}
    ours = {"device": "cuda"} if cuda else {}
    with ExitStack() as stack, telling() as tell:

        def start(name: str, factory: str, **more: Any) -> Worker:
            tell(f"opening {name}")
            worker = Worker(name, factory, **common, **more)
            stack.callback(worker.close)
            return worker

        contenders: list[Contender] = []
        if subject.absent is None:
            contenders.append(start(OURS, OUR_DRAWER, engine=found.engine or "ort", **ours))
        reference = yardstick = None
        if not idle:
            more = {**theirs, "dtype": "float32"} if cuda else {}
            reference = start("diffusers", DRAWERS["diffusers"], **more)
        for peer in found.against:
            if peer == "ort":
                contenders.append(start(peer, ORT_GRAPHS, device=found.device or "cpu"))
            elif peer in ENGINES:
                contenders.append(start(peer, OUR_DRAWER, engine=peer, **ours))
            elif peer == "diffusers" and reference is not None and not cuda:
                contenders.append(reference)
            else:
                contenders.append(start(peer, DRAWERS[peer], **theirs))
                yardstick = contenders[-1] if peer == "diffusers" else yardstick
        if cuda and yardstick is None and reference is not None:
            yardstick = start("diffusers", DRAWERS["diffusers"], **theirs)
        kept = ("picture",) if cuda and benchmark == "end-to-end" else KEPT[benchmark]
        kept = ("own",) if found.engine in IDLE else kept
        for group in [[case] for case in cases] if found.case_by_case else [cases]:
            raced = race(
                contenders,
                group,
                reference=reference,
                yardstick=yardstick,
                **reading.runs(found),
                tell=tell,
            )
            for case, lanes in zip(group, raced, strict=True):
                if subject.absent is not None:
                    lanes.insert(0, Lane(OURS, absent=subject.absent))
                setting = reading.setting(subject, found, case)
                if found.engine not in (None, "ort"):
                    setting["engine"] = found.engine
                flop, nbytes = (None, None) if cuda else work_of(subject.path, case)
                records = records_of(origin, lanes, setting, kept, flop=flop, nbytes=nbytes)
                keep(found.output, records, tell)
    return 0


def step(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the UNet alone, on random inputs."""
    names = [name for name in reading.CASE if name not in ("steps", "samplers", "prompt")]

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--apart",
            action="store_true",
            help="hold one contender in memory at a time, one after the other",
        )

    found = reading.read(benchmark, argv, "model", "against", *names, *reading.RUNS, add=add)
    if not set(found.against) <= set(UNETS):
        unknown = next(name for name in found.against if name not in UNETS)
        raise BadInput(f"--against: step knows diffusers, compile and ort, not {unknown}")
    reading.check_peers(found, reference=True)
    subject, cases = reading.subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; the UNet alone is measured of SDXL")
    origin = reading.origin(benchmark, found, subject)

    from diffusion_rt.bench.race import race, race_apart, records_of
    from diffusion_rt.bench.records import OURS
    from diffusion_rt.bench.running import keep, telling
    from diffusion_rt.bench.unet_alone import work_of
    from diffusion_rt.bench.worker import Worker

    common: dict[str, Any] = {"model": subject.path, "threads": found.threads}
    openers: dict[str, Opener] = {
        name: partial(Worker, name, factory, **common)
        for name, factory in UNETS.items()
        if name in ("diffusers", OURS) or name in found.against
    }
    with ExitStack() as stack, telling() as tell:
        opened: list[Contender] = []
        for opener in [] if found.apart else openers.values():
            opened.append(opener())
            stack.callback(opened[-1].close)
        if found.apart:
            raced = race_apart(openers, cases, **reading.runs(found), tell=tell)
        else:
            raced = race(opened, cases, reference=opened[0], **reading.runs(found), tell=tell)
        for case, lanes in zip(cases, raced, strict=True):
            setting = reading.setting(subject, found, case)
            del setting["steps"], setting["sampler"]
            setting["turns"] = "reopened" if found.apart else "alternating"
            flop, nbytes = work_of(subject.path, case)
            records = records_of(origin, lanes, setting, flop=flop, nbytes=nbytes)
            keep(found.output, records, tell)
    return 0


def startup(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the first picture of a fresh process, imports, and installed size."""
    names = [name for name in reading.CASE if name != "batches"]

    def add(parser: argparse.ArgumentParser) -> None:
        for kind, how in (("downloads", "download --dest"), ("installed", "install --target")):
            for name, whose in (("ours", "diffusion-rt's"), ("theirs", "diffusers'")):
                parser.add_argument(
                    f"--{kind}-{name}",
                    type=Path,
                    metavar="DIR",
                    help=f"{whose} set for a GPU, by pip {how} DIR …; with both, only their sizes "
                    "are counted",
                )

    found = reading.read(benchmark, argv, "model", "against", *names, "repeats", "threads", add=add)
    if found.against != ["diffusers"]:
        raise BadInput(
            "--against: startup knows diffusers alone; whatever compiles takes minutes before it "
            "draws, and our engines on a GPU are started by bench/gpu.py"
        )

    from diffusion_rt.bench import disk
    from diffusion_rt.bench import startup as costs
    from diffusion_rt.bench.running import keep, telling

    for name, records_of in (
        ("downloads", disk.records_of_downloads),
        ("installed", disk.records_of_folders),
    ):
        sets = [getattr(found, f"{name}_{whose}") for whose in ("ours", "theirs")]
        if not any(sets):
            continue
        if not all(sets):
            raise BadInput(f"--{name}-ours and --{name}-theirs go together; give both")
        origin = reading.origin(benchmark, argparse.Namespace(), None)
        words = f"--{name}-ours DIR --{name}-theirs DIR"
        origin = replace(origin, command=f"{origin.command} {words}")
        with telling() as tell:
            keep(found.output, records_of(origin, *sets), tell)
        return 0
    reading.require("torch", "diffusers", "transformers")
    subject, cases = reading.subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; startup draws with both sides")
    origin = reading.origin(benchmark, found, subject)
    with telling() as tell, tempfile.TemporaryDirectory() as pictures:
        for case in cases:
            told = costs.commands(
                case,
                model=subject.path,
                threads=found.threads,
                pictures=Path(pictures),
                sampler=bool(found.samplers),
            )
            runs, wrong = costs.first_pictures(
                told, pictures=Path(pictures), repeats=found.repeats, tell=tell
            )
            setting = reading.setting(subject, found, case)
            keep(found.output, costs.records_of_pictures(origin, runs, wrong, setting), tell)
        imports = costs.imports(found.repeats, tell)
        keep(found.output, costs.records_of_imports(origin, imports), tell)
        tell("installed size")
        keep(found.output, disk.records_of_environment(origin), tell)
    return 0


def chip(benchmark: str, argv: Sequence[str]) -> int:
    """Measure what the processor can do at most: a large product and a large copy."""
    found = reading.read(benchmark, argv, *reading.RUNS)
    origin = reading.origin(benchmark, found, None)

    from diffusion_rt.bench import ceilings
    from diffusion_rt.bench.running import keep, telling

    with telling() as tell:
        rates = ceilings.measured(found.threads, found.repeats, found.warm_up, tell)
        keep(found.output, ceilings.records_of(origin, rates, found.threads), tell)
    return 0


def operators(benchmark: str, argv: Sequence[str]) -> int:
    """Measure what the operators of a step take, by ONNX Runtime's profiler."""
    names = [name for name in reading.CASE if name not in ("steps", "samplers", "prompt")]
    found = reading.read(benchmark, argv, "model", *names, "axes", *reading.RUNS)
    subject, cases = reading.subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; operators are those of our own graphs")
    origin = reading.origin(benchmark, found, subject)

    from diffusion_rt.bench import operators as profiles
    from diffusion_rt.bench.running import keep, telling
    from diffusion_rt.bench.unet_alone import work_of

    with telling() as tell:
        laps = profiles.measured(
            subject.path, cases, threads=found.threads, **reading.runs(found), tell=tell
        )
        for case, seconds in zip(cases, laps, strict=True):
            setting = reading.setting(subject, found, case)
            del setting["steps"], setting["sampler"]
            work = work_of(subject.path, case)
            keep(found.output, profiles.records_of(origin, seconds, setting, work), tell)
    return 0

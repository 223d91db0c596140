"""The sub-command `bench`: what is measured, against whom, and where the records go."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_rt.bench.flags import ENGINES, parser_of
from diffusion_rt.bench.settings import SETTINGS, expanded, listed
from diffusion_rt.command import plain, shortened
from diffusion_rt.engines.errors import BadInput

if TYPE_CHECKING:
    from diffusion_rt.bench.case import Case
    from diffusion_rt.bench.contender import Contender
    from diffusion_rt.bench.race import Opener
    from diffusion_rt.bench.records import Origin
    from diffusion_rt.bench.subject import Subject

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
  diffusion-rt bench all                                         (every CPU record of README)
  diffusion-rt bench report --check
"""
CASE = ("sizes", "batches", "steps", "samplers", "guidance-scale", "prompt", "seed")
RUNS = ("repeats", "warm-up", "threads")

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
}

Setting = dict[str, str | int | float]


def main(argv: Sequence[str]) -> int:
    """Run one benchmark and keep its records; the exit status. Raises BadInput and Fault."""
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        listed_ = "\n".join(f"  {key:<12}{text}" for key, (_, text) in BENCHMARKS.items())
        text = HELP.format(benchmarks=listed_, settings=listed())
        print(text, end="", file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in BENCHMARKS:
        raise BadInput(f"{shortened(name)!r} is no benchmark; one of {', '.join(BENCHMARKS)}")
    # What transformers says of packages that it can do without.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return BENCHMARKS[name][0](name, argv[1:])


def draw(benchmark: str, argv: Sequence[str]) -> int:
    """Measure drawing pictures, whole or by stage."""
    names = ("model", "against", *CASE, "axes", "engine", "device", *RUNS, "case-by-case")
    found = _read(benchmark, argv, *names)
    idle = found.engine == "null"
    if idle:
        found.against = []
    _check_peers(found, reference=not idle)
    subject, cases = _subject_and_cases(found)
    origin = _origin(benchmark, found, subject)

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
            if peer == "ort" and cuda:
                contenders.append(start(peer, ORT_GRAPHS))
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
        for group in [[case] for case in cases] if found.case_by_case else [cases]:
            raced = race(
                contenders,
                group,
                reference=reference,
                yardstick=yardstick,
                **_runs(found),
                tell=tell,
            )
            for case, lanes in zip(group, raced, strict=True):
                if subject.absent is not None:
                    lanes.insert(0, Lane(OURS, absent=subject.absent))
                setting = _setting(subject, found, case)
                if found.engine not in (None, "ort"):
                    setting["engine"] = found.engine
                flop, nbytes = (None, None) if cuda else work_of(subject.path, case)
                records = records_of(origin, lanes, setting, kept, flop=flop, nbytes=nbytes)
                keep(found.output, records, tell)
    return 0


def step(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the UNet alone, on random inputs."""
    names = [name for name in CASE if name not in ("steps", "samplers", "prompt")]

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--apart",
            action="store_true",
            help="hold one contender in memory at a time, one after the other",
        )

    found = _read(benchmark, argv, "model", "against", *names, *RUNS, add=add)
    if not set(found.against) <= set(UNETS):
        raise BadInput(f"--against: step knows diffusers and compile, not {found.against[-1]}")
    _check_peers(found, reference=True)
    subject, cases = _subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; the UNet alone is measured of SDXL")
    origin = _origin(benchmark, found, subject)

    from diffusion_rt.bench.race import race, race_apart, records_of
    from diffusion_rt.bench.running import keep, telling
    from diffusion_rt.bench.unet_alone import work_of
    from diffusion_rt.bench.worker import Worker

    common: dict[str, Any] = {"model": subject.path, "threads": found.threads}
    openers: dict[str, Opener] = {
        name: partial(Worker, name, factory, **common)
        for name, factory in UNETS.items()
        if name != "compile" or name in found.against
    }
    with ExitStack() as stack, telling() as tell:
        opened: list[Contender] = []
        for opener in [] if found.apart else openers.values():
            opened.append(opener())
            stack.callback(opened[-1].close)
        if found.apart:
            raced = race_apart(openers, cases, **_runs(found), tell=tell)
        else:
            raced = race(opened, cases, reference=opened[0], **_runs(found), tell=tell)
        for case, lanes in zip(cases, raced, strict=True):
            setting = _setting(subject, found, case)
            del setting["steps"], setting["sampler"]
            setting["turns"] = "reopened" if found.apart else "alternating"
            flop, nbytes = work_of(subject.path, case)
            records = records_of(origin, lanes, setting, flop=flop, nbytes=nbytes)
            keep(found.output, records, tell)
    return 0


def startup(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the first picture of a fresh process, imports, and installed size."""
    names = [name for name in CASE if name != "batches"]

    def add(parser: argparse.ArgumentParser) -> None:
        for name, whose in (("ours", "diffusion-rt's"), ("theirs", "diffusers'")):
            parser.add_argument(
                f"--downloads-{name}",
                type=Path,
                metavar="FILE",
                help=f"what pip would install for {whose} CUDA set, by pip install --dry-run "
                "--ignore-installed --report FILE …; with both, only these sizes are asked for",
            )
            parser.add_argument(
                f"--installed-{name}",
                type=Path,
                metavar="DIR",
                help=f"where pip installed {whose} CUDA set, by pip install --target DIR …; with "
                "both, only these sizes are counted",
            )

    found = _read(benchmark, argv, "model", "against", *names, "repeats", "threads", add=add)
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
        origin = _origin(benchmark, argparse.Namespace(), None)
        words = f"--{name}-ours PATH --{name}-theirs PATH"
        origin = replace(origin, command=f"{origin.command} {words}")
        with telling() as tell:
            keep(found.output, records_of(origin, *sets), tell)
        return 0
    _require("torch", "diffusers", "transformers")
    subject, cases = _subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; startup draws with both sides")
    origin = _origin(benchmark, found, subject)
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
            setting = _setting(subject, found, case)
            keep(found.output, costs.records_of_pictures(origin, runs, wrong, setting), tell)
        imports = costs.imports(found.repeats, tell)
        keep(found.output, costs.records_of_imports(origin, imports), tell)
        tell("installed size")
        keep(found.output, disk.records_of_environment(origin), tell)
    return 0


def checkpoint(benchmark: str, argv: Sequence[str]) -> int:
    """Write a checkpoint of generated weights, for whatever is to be measured with it."""
    found = _read(benchmark, argv, "architecture", "seed", add=_add_keep, defaults={"seed": 0})
    for name in ("architecture", "keep"):
        if getattr(found, name) is None:
            raise BadInput(f"--{name} is missing; see diffusion-rt bench checkpoint --help")
    _check_new(found.keep)
    _require("torch", "diffusers", "transformers")

    from diffusion_rt.bench.architectures import ARCHITECTURES
    from diffusion_rt.bench.checkpoint import make_checkpoint
    from diffusion_rt.bench.running import telling

    with telling() as tell:
        tell(f"generating {found.architecture}")
        count = make_checkpoint(found.keep, ARCHITECTURES[found.architecture], seed=found.seed)
    print(plain(f"{found.keep}: {found.architecture}, {count:,} generated weights"))
    return 0


def export(benchmark: str, argv: Sequence[str]) -> int:
    """Measure exporting a checkpoint, of generated weights where none is named."""
    from diffusion_rt.bench.architectures import ARCHITECTURES, EXPORTABLE
    from diffusion_rt.bench.checkpoint import make_checkpoint

    defaults = {"repeats": 1}
    names = ("model", "architecture", "repeats")
    found = _read(benchmark, argv, *names, add=_add_keep, defaults=defaults)
    if found.model is not None:
        if (found.architecture or found.keep) is not None:
            raise BadInput("--model is a checkpoint that is there; leave --architecture and --keep")
        return _export(benchmark, found)
    found.architecture = found.architecture or "sdxl-base"
    if found.architecture not in EXPORTABLE:
        raise BadInput(
            f"--architecture {found.architecture} cannot be exported yet; of "
            f"{', '.join(EXPORTABLE)}"
        )
    _require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")
    _check_new(found.keep)
    origin = _origin(benchmark, found, None)

    from diffusion_rt.bench import export_cost
    from diffusion_rt.bench.running import keep, telling, work_folder

    with telling() as tell, work_folder(found.keep) as folder:
        tell(f"generating {found.architecture}")
        weights = make_checkpoint(folder, ARCHITECTURES[found.architecture])
        costs = export_cost.exports(folder, found.repeats, tell)
        setting: Setting = {"model": found.architecture, "weights": weights}
        keep(found.output, export_cost.records_of(origin, costs, setting), tell)
    return 0


def _export(benchmark: str, found: argparse.Namespace) -> int:
    """The same of a checkpoint of somebody's own, beside which the last export stays."""
    _require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")

    from diffusion_rt.bench import export_cost
    from diffusion_rt.bench.running import keep, origin_of, telling

    weights = export_cost.weights_of(found.model)
    name = found.model.resolve().name
    origin = origin_of(benchmark, found, name)
    with telling() as tell:
        costs = export_cost.exports(found.model, found.repeats, tell)
        setting: Setting = {"model": name, "weights": weights}
        keep(found.output, export_cost.records_of(origin, costs, setting), tell)
    return 0


def chip(benchmark: str, argv: Sequence[str]) -> int:
    """Measure what the processor can do at most: a large product and a large copy."""
    found = _read(benchmark, argv, *RUNS)
    origin = _origin(benchmark, found, None)

    from diffusion_rt.bench import ceilings
    from diffusion_rt.bench.running import keep, telling

    with telling() as tell:
        rates = ceilings.measured(found.threads, found.repeats, found.warm_up, tell)
        keep(found.output, ceilings.records_of(origin, rates, found.threads), tell)
    return 0


def operators(benchmark: str, argv: Sequence[str]) -> int:
    """Measure what the operators of a step take, by ONNX Runtime's profiler."""
    names = [name for name in CASE if name not in ("steps", "samplers", "prompt")]
    found = _read(benchmark, argv, "model", *names, "axes", *RUNS)
    subject, cases = _subject_and_cases(found)
    if subject.absent is not None:
        raise BadInput(f"{subject.path}: {subject.absent}; operators are those of our own graphs")
    origin = _origin(benchmark, found, subject)

    from diffusion_rt.bench import operators as profiles
    from diffusion_rt.bench.running import keep, telling
    from diffusion_rt.bench.unet_alone import work_of

    with telling() as tell:
        laps = profiles.measured(
            subject.path, cases, threads=found.threads, **_runs(found), tell=tell
        )
        for case, seconds in zip(cases, laps, strict=True):
            setting = _setting(subject, found, case)
            del setting["steps"], setting["sampler"]
            work = work_of(subject.path, case)
            keep(found.output, profiles.records_of(origin, seconds, setting, work), tell)
    return 0


def graphs(benchmark: str, argv: Sequence[str]) -> int:
    """Copy an exported model of generated weights without them, for a machine with a GPU."""
    found = _read(benchmark, argv, "model", add=_add_keep)
    for name in ("model", "keep"):
        if getattr(found, name) is None:
            raise BadInput(f"--{name} is missing; see diffusion-rt bench graphs --help")
    _check_new(found.keep)

    from diffusion_rt.bench.bare import strip

    size = strip(found.model, found.keep)
    print(plain(f"{found.keep}: {size / 1e6:.1f} MB; python bench/gpu.py --graphs {found.keep}"))
    return 0


def build(benchmark: str, argv: Sequence[str]) -> int:
    """Measure building engines of a model."""

    def add(parser: argparse.ArgumentParser) -> None:
        for name, value, what in (
            ("engine", "NAME", "trt or native"),
            ("buckets", "SIZES", "as `diffusion-rt build` takes them; default: its own"),
            ("batch", "MIN:OPT:MAX", "the same"),
            ("archs", "LIST", "of native, chips to compile for where there is no GPU, such as 90"),
        ):
            parser.add_argument(f"--{name}", metavar=value, help=what)

    found = _read(benchmark, argv, "model", "repeats", add=add, defaults={"repeats": 1})

    from diffusion_rt.bench import build_cost
    from diffusion_rt.bench.running import keep, origin_on, telling
    from diffusion_rt.engines.model_folder import open_model
    from diffusion_rt.runtime.pipeline import SHIPPED

    if found.engine not in build_cost.ENGINES:
        raise BadInput(f"--engine {found.engine}: one of {', '.join(build_cost.ENGINES)} is built")
    folder = open_model(found.model or SHIPPED)
    origin = origin_on(benchmark, found, folder.manifest.name if found.model else None)
    options = [
        word
        for name in ("buckets", "batch", "archs")
        if (value := getattr(found, name)) is not None
        for word in (f"--{name}", value)
    ]
    setting: Setting = {"model": folder.manifest.name, "engine": found.engine}
    setting |= {"buckets": found.buckets} if found.buckets else {}
    setting |= {"batch": found.batch} if found.batch else {}
    setting |= {"archs": found.archs} if found.archs else {}
    with telling() as tell:
        builds = build_cost.builds(folder.path, found.engine, options, found.repeats, tell)
        keep(found.output, build_cost.records_of(origin, builds, setting), tell)
    return 0


def kernels(benchmark: str, argv: Sequence[str]) -> int:
    """Check and time each GPU kernel by itself."""
    from diffusion_rt.bench.kernels import run

    return run(benchmark, argv)


def everything(benchmark: str, argv: Sequence[str]) -> int:
    """Take all CPU records that the tables are made of; 1 where a benchmark failed."""
    found = _read(benchmark, argv)
    _require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")

    from diffusion_rt.bench.everything import everything as run_all
    from diffusion_rt.bench.running import warn_if_busy

    warn_if_busy()
    found.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        failed = run_all(found.output, Path(folder), lambda text: print(plain(text), flush=True))
    for command in failed:
        print(plain(f"failed: diffusion-rt bench {command}"), file=sys.stderr)
    return 1 if failed else 0


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

    found = _read(benchmark, argv, add=add)

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


BENCHMARKS: dict[str, tuple[Callable[[str, Sequence[str]], int], str]] = {
    "end-to-end": (draw, "prompt to picture, engines open and warm"),
    "stages": (draw, "the same, stage by stage"),
    "step": (step, "the UNet alone, for models of which one fills the memory"),
    "operators": (operators, "a step by kind of operator, as ONNX Runtime's profiler has it"),
    "startup": (startup, "a fresh process: time to the first picture, memory, installed size"),
    "export": (export, "checkpoint to ONNX: time, memory, bytes written"),
    "chip": (chip, "what this processor can do at most: a product and a copy"),
    "checkpoint": (checkpoint, "no measurement: a checkpoint of generated weights"),
    "build": (build, "engines for this chip: time, size, memory; and again, with nothing to do"),
    "kernels": (kernels, "each GPU kernel by itself: right, then bytes and operations a second"),
    "graphs": (graphs, "no measurement: an exported model without its generated weights"),
    "all": (everything, "every CPU record of README's tables, in half an hour on two cores"),
    "report": (report, "no measurement: tables and plots from the records"),
}


def _read(
    benchmark: str,
    argv: Sequence[str],
    *names: str,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    defaults: "dict[str, Any] | None" = None,
) -> argparse.Namespace:
    """The flags of a benchmark as given; a `--setting` counts as the flags it stands for."""
    parser = parser_of(benchmark, BENCHMARKS[benchmark][1], names)
    add(parser)
    parser.set_defaults(**(defaults or {}))
    takes = {name for _, flags in SETTINGS.values() for name in flags} & set(names)
    if takes:
        parser.add_argument(
            "--setting", metavar="NAME,…", help=f"of {', '.join(SETTINGS)}: flags that go together"
        )
        argv = expanded(argv, takes)
    return parser.read(argv)


def _add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="a new folder for it; the weights of sdxl-base take 7 GB of disk",
    )


def _check_new(folder: Path | None) -> None:
    if folder is not None and os.path.lexists(folder):
        raise BadInput(f"--keep {folder}: it is there already; name a new folder")


def _subject_and_cases(found: argparse.Namespace) -> "tuple[Subject, list[Case]]":
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


def _runs(found: argparse.Namespace) -> dict[str, Any]:
    return {"repeats": found.repeats, "warm_up": found.warm_up}


def _check_peers(found: argparse.Namespace, *, reference: bool) -> None:
    """BadInput where a peer, or the reference that all are held against, cannot run here."""
    if reference:
        _require("torch", "diffusers", "transformers")
    compiles = "compile" in found.against and getattr(found, "device", "cpu") != "cuda"
    if compiles and not any(map(shutil.which, ("g++", "clang++"))):
        raise BadInput("--against compile: torch.compile needs a C++ compiler; install g++")
    ours = getattr(found, "engine", None) or "ort"
    if ours in found.against:
        raise BadInput(
            f"--against {ours}: that is the engine that is measured, and nobody else here drives "
            "the same library; leave it out, or measure another with --engine"
        )


def _require(*modules: str) -> None:
    from diffusion_rt.bench.running import require

    require(*modules)


def _origin(benchmark: str, found: argparse.Namespace, subject: "Subject | None") -> "Origin":
    from diffusion_rt.bench.running import origin_of

    given = getattr(found, "model", None) is not None
    return origin_of(benchmark, found, subject.name if subject is not None and given else None)


def _setting(subject: "Subject", found: argparse.Namespace, case: "Case") -> Setting:
    return {"model": subject.name, **case.setting, "threads": found.threads}

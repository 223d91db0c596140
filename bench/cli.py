"""The sub-command `bench`: what is measured, against whom, and where the records go."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_rt.bench.flags import command_of, parser_of
from diffusion_rt.command import plain, shortened
from diffusion_rt.engines.errors import BadInput

if TYPE_CHECKING:
    from diffusion_rt.bench.case import Case
    from diffusion_rt.bench.contender import Contender
    from diffusion_rt.bench.race import Opener
    from diffusion_rt.bench.records import Origin, Record
    from diffusion_rt.engines.model_folder import ModelFolder

HELP = """usage: diffusion-rt bench BENCHMARK [flags]

Measure against diffusers, on the same weights, noise, steps and threads. Whoever draws something
else than diffusers in float32 is reported as wrong and not timed.

benchmarks:
{benchmarks}

  diffusion-rt bench BENCHMARK --help   all flags of a benchmark

examples:
  diffusion-rt bench end-to-end --against diffusers,compile --repeats 20
  diffusion-rt bench end-to-end --sizes 64x64,128x128,256x256 --batches 1,2,4,8
  diffusion-rt bench stages --engine null --sizes 1024x1024      (our own time around the engines)
  diffusion-rt bench export --architecture sdxl-base --keep ./sdxl
  diffusion-rt bench step --model ./sdxl --sizes 512x512 --apart
  diffusion-rt bench report --check
"""
CASE = ("sizes", "batches", "steps", "samplers", "guidance-scale", "prompt", "seed")
RUNS = ("repeats", "warm-up", "threads")

# The measures that each benchmark of drawing keeps; None keeps all.
KEPT: dict[str, tuple[str, ...] | None] = {"end-to-end": ("picture", "step"), "stages": None}

# Who can run, and where that stands; the reference comes first where only one runs at a time.
DRAWERS = {
    "diffusion-rt": "diffusion_rt.bench.ours:Ours",
    "diffusers": "diffusion_rt.bench.peers:Diffusers",
    "compile": "diffusion_rt.bench.peers:Compiled",
}
UNETS = {
    "diffusers": "diffusion_rt.bench.unet_alone:DiffusersUnet",
    "diffusion-rt": "diffusion_rt.bench.unet_alone:OurUnet",
}

Setting = dict[str, str | int | float]


def main(argv: Sequence[str]) -> int:
    """Run one benchmark and keep its records; the exit status. Raises BadInput and Fault."""
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        listed = "\n".join(f"  {key:<12}{text}" for key, (_, text) in BENCHMARKS.items())
        print(HELP.format(benchmarks=listed), end="", file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in BENCHMARKS:
        raise BadInput(
            f"{shortened(name)!r} is no benchmark; one of {', '.join(BENCHMARKS)} (kernels and "
            "build are not in this release)"
        )
    # What transformers says of packages that it can do without.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return BENCHMARKS[name][0](name, argv[1:])


def draw(benchmark: str, argv: Sequence[str]) -> int:
    """Measure drawing pictures, whole or by stage."""
    found = _parser(benchmark, "model", "against", *CASE, "engine", *RUNS).read(argv)
    idle = found.engine == "null"
    if idle:
        found.against = []
    _check_peers(found.against, reference=not idle)
    folder, cases = _model_and_cases(found)
    origin = _origin(benchmark, found, folder)

    from diffusion_rt.bench.race import race, records_of
    from diffusion_rt.bench.records import OURS
    from diffusion_rt.bench.worker import Worker

    common: dict[str, Any] = {"model": folder.path, "threads": found.threads}
    with ExitStack() as stack, _telling() as tell:

        def start(name: str, **more: Any) -> Worker:
            tell(f"opening {name}")
            worker = Worker(name, DRAWERS[name], **common, **more)
            stack.callback(worker.close)
            return worker

        contenders = [start(OURS, engine=found.engine or "ort")]
        reference = None if idle else start("diffusers")
        for peer in found.against:
            contenders.append(reference if reference and peer == "diffusers" else start(peer))
        for case in cases:
            lanes = race(contenders, case, reference=reference, **_runs(found), tell=tell)
            setting = _setting(folder, found, case)
            if idle:
                setting["engine"] = found.engine
            _keep(found.output, records_of(origin, lanes, setting, KEPT[benchmark]), tell)
    return 0


def step(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the UNet alone, on random inputs."""
    names = [name for name in CASE if name not in ("steps", "samplers", "prompt")]
    parser = _parser(benchmark, "model", *names, *RUNS)
    parser.add_argument(
        "--apart",
        action="store_true",
        help="hold one contender in memory at a time, one after the other",
    )
    found = parser.read(argv)
    _check_peers([], reference=True)
    folder, cases = _model_and_cases(found)
    origin = _origin(benchmark, found, folder)

    from diffusion_rt.bench.race import race, race_apart, records_of
    from diffusion_rt.bench.worker import Worker

    common: dict[str, Any] = {"model": folder.path, "threads": found.threads}
    openers: dict[str, Opener] = {
        name: partial(Worker, name, factory, **common) for name, factory in UNETS.items()
    }
    with ExitStack() as stack, _telling() as tell:
        opened: list[Contender] = []
        for opener in [] if found.apart else openers.values():
            opened.append(opener())
            stack.callback(opened[-1].close)
        for case in cases:
            if found.apart:
                lanes = race_apart(openers, case, **_runs(found), tell=tell)
            else:
                lanes = race(opened, case, reference=opened[0], **_runs(found), tell=tell)
            setting = _setting(folder, found, case)
            del setting["steps"], setting["sampler"]
            setting["turns"] = "apart" if found.apart else "alternating"
            _keep(found.output, records_of(origin, lanes, setting), tell)
    return 0


def startup(benchmark: str, argv: Sequence[str]) -> int:
    """Measure the first picture of a fresh process, imports, and installed size."""
    names = [name for name in CASE if name not in ("batches", "samplers")]
    found = _parser(benchmark, "model", *names, "repeats", "threads").read(argv)
    _check_peers([], reference=True)
    folder, cases = _model_and_cases(found)
    origin = _origin(benchmark, found, folder)

    from diffusion_rt.bench import startup as costs

    with _telling() as tell, tempfile.TemporaryDirectory() as pictures:
        for case in cases:
            runs, wrong = costs.first_pictures(
                case,
                model=folder.path,
                threads=found.threads,
                pictures=Path(pictures),
                repeats=found.repeats,
                tell=tell,
            )
            setting = _setting(folder, found, case)
            _keep(found.output, costs.records_of_pictures(origin, runs, wrong, setting), tell)
        imports = costs.imports(found.repeats, tell)
        _keep(found.output, costs.records_of_imports(origin, imports), tell)
        _keep(found.output, costs.records_of_disk(origin), tell)
    return 0


def export(benchmark: str, argv: Sequence[str]) -> int:
    """Measure exporting a checkpoint of generated weights."""
    from diffusion_rt.bench.checkpoint import ARCHITECTURES, make_checkpoint

    parser = _parser(benchmark, "repeats")
    parser.set_defaults(repeats=1)
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default="sdxl-base",
        help="of the generated checkpoint; sdxl-base, the default, takes 7 GB of disk",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the exported checkpoint there"
    )
    found = parser.read(argv)
    _require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")
    if found.keep is not None and os.path.lexists(found.keep):
        raise BadInput(f"--keep {found.keep}: it is there already; name a new folder")
    origin = _origin(benchmark, found, None)

    from diffusion_rt.bench import export_cost

    with _telling() as tell, _work_folder(found.keep) as folder:
        tell(f"generating {found.architecture}")
        weights = make_checkpoint(folder, ARCHITECTURES[found.architecture])
        costs = export_cost.exports(folder, found.repeats, tell)
        setting: Setting = {"model": found.architecture, "weights": weights}
        _keep(found.output, export_cost.records_of(origin, costs, setting), tell)
    return 0


def report(benchmark: str, argv: Sequence[str]) -> int:
    """Write the tables of the documents and the plots, from the records alone."""
    parser = _parser(benchmark)
    parser.add_argument(
        "--document",
        type=Path,
        metavar="FILE",
        action="append",
        help="a Markdown file with <!-- bench:NAME --> marks, several times for several; default: "
        "README.md and bench/README.md of the checkout",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; status 1 where a table or a plot is not what the records say",
    )
    found = parser.read(argv)

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
    "startup": (startup, "a fresh process: time to the first picture, memory, installed size"),
    "export": (export, "checkpoint to ONNX: time, memory, bytes written"),
    "report": (report, "tables and plots from the records"),
}


def _parser(benchmark: str, *names: str) -> Any:
    return parser_of(benchmark, BENCHMARKS[benchmark][1], names)


def _model_and_cases(found: argparse.Namespace) -> "tuple[ModelFolder, list[Case]]":
    """The model that is meant and what is done with it, the open choices made by its manifest."""
    from diffusion_rt.bench.case import PROMPT, cases
    from diffusion_rt.engines.model_folder import open_model
    from diffusion_rt.runtime.pipeline import SHIPPED
    from diffusion_rt.runtime.samplers import sampler_name

    folder = open_model(found.model or SHIPPED)
    manifest, defaults = folder.manifest, folder.manifest.defaults
    names = getattr(found, "samplers", None) or [manifest.schedule.scheduler]
    scale = found.guidance_scale
    return folder, cases(
        prompt=getattr(found, "prompt", None) or PROMPT,
        sizes=found.sizes or [(defaults.width, defaults.height)],
        batches=getattr(found, "batches", [1]),
        steps=getattr(found, "steps", None) or [defaults.steps],
        samplers=[sampler_name(name) for name in names],
        guidance_scale=defaults.guidance_scale if scale is None else scale,
        seed=found.seed,
    )


def _runs(found: argparse.Namespace) -> dict[str, Any]:
    return {"repeats": found.repeats, "warm_up": found.warm_up}


def _check_peers(against: Sequence[str], *, reference: bool) -> None:
    """BadInput where a peer, or the reference that all are held against, cannot run here."""
    if reference:
        _require("torch", "diffusers", "transformers")
    if "compile" in against and not any(map(shutil.which, ("g++", "clang++"))):
        raise BadInput("--against compile: torch.compile needs a C++ compiler; install g++")


def _require(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            raise BadInput(
                f"{module} is not installed; this benchmark needs it: "
                "pip install 'diffusion-rt[cpu,export]'"
            )


def _origin(benchmark: str, found: argparse.Namespace, folder: "ModelFolder | None") -> "Origin":
    from diffusion_rt.bench.records import Origin

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > cores / 2:
        print(
            f"other programs keep this machine busy (load {load:.1f}, {cores} cores): the figures "
            "will not repeat",
            file=sys.stderr,
        )
    given = getattr(found, "model", None)
    model = folder.manifest.name if folder is not None and given is not None else None
    return Origin(benchmark=benchmark, command=command_of(benchmark, found, model))


def _setting(folder: "ModelFolder", found: argparse.Namespace, case: "Case") -> Setting:
    return {"model": folder.manifest.name, **case.setting, "threads": found.threads}


def _keep(output: Path, records: "Sequence[Record]", tell: Callable[[str], None]) -> None:
    """Append the records, and print each in a line."""
    from diffusion_rt.bench.records import append

    append(output, records)
    tell("")
    for record in records:
        print(plain(str(record)))
    sys.stdout.flush()


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is going on, where somebody is looking at it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield lambda text: None
        return

    def tell(text: str) -> None:
        print(f"\r\x1b[K{plain(text)}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        tell("")


@contextmanager
def _work_folder(keep: Path | None) -> Iterator[Path]:
    """The folder to keep, or one that goes when the block ends."""
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

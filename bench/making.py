"""The sub-commands that make something, and what that costs: checkpoints, models, engines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffusion_rt.bench import reading
from diffusion_rt.bench.reading import Setting
from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput


def checkpoint(benchmark: str, argv: Sequence[str]) -> int:
    """Write a checkpoint of generated weights, for whatever is to be measured with it."""
    found = reading.read(
        benchmark, argv, "architecture", "seed", add=reading.add_keep, defaults={"seed": 0}
    )
    for name in ("architecture", "keep"):
        if getattr(found, name) is None:
            raise BadInput(f"--{name} is missing; see diffusion-rt bench checkpoint --help")
    reading.check_new(found.keep)
    reading.require("torch", "diffusers", "transformers")

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
    found = reading.read(benchmark, argv, *names, add=reading.add_keep, defaults=defaults)
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
    reading.require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")
    reading.check_new(found.keep)
    origin = reading.origin(benchmark, found, None)

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
    reading.require("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir")

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


def graphs(benchmark: str, argv: Sequence[str]) -> int:
    """Copy an exported model of generated weights without them, for a machine with a GPU."""
    found = reading.read(benchmark, argv, "model", add=reading.add_keep)
    for name in ("model", "keep"):
        if getattr(found, name) is None:
            raise BadInput(f"--{name} is missing; see diffusion-rt bench graphs --help")
    reading.check_new(found.keep)

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

    found = reading.read(benchmark, argv, "model", "repeats", add=add, defaults={"repeats": 1})

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


def tactics(benchmark: str, argv: Sequence[str]) -> int:
    """Write a table of tactics into the package, for all who have measured none."""
    from diffusion_rt.engines.native.shipped import TABLES

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        for name, value, what in (
            ("measured", "DIR", "what bench/gpu.py --output DIR has measured"),
            ("reckoned", "CHIP", "the likely fastest ways of SDXL base on a chip, such as h200"),
        ):
            group.add_argument(f"--{name}", metavar=value, help=what)
        parser.add_argument(
            "--tables", type=Path, metavar="DIR", help=f"where they are; default: {TABLES.name}/"
        )

    found = reading.read(benchmark, argv, add=add)

    from diffusion_rt.bench import tactics_table
    from diffusion_rt.engines.native.shipped import add_table

    if found.measured is not None:
        arch, table = tactics_table.measured(Path(found.measured))
    else:
        arch, table = tactics_table.reckoned(found.reckoned)
    folder = found.tables or TABLES
    told = tactics_table.compared(arch, table, folder)
    print(plain(f"{add_table(arch, table, folder)}: {told}"))
    return 0

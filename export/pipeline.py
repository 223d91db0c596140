"""From a checkpoint to a model folder, in order: look, copy, trace, hash, check, publish."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import (
    FileRecord,
    GraphVariant,
    Manifest,
    manifest_bytes,
)
from diffusion_rt.engines.model_folder import record_of
from diffusion_rt.engines.spec import GRAPHS, Precision
from diffusion_rt.export import record
from diffusion_rt.export.bind import Graph, file_name, finished
from diffusion_rt.export.check import Outcome, check_network
from diffusion_rt.export.checkpoint import Checkpoint
from diffusion_rt.export.names import Weight, bind
from diffusion_rt.export.place import Contents, contents, copied, prepared, publish
from diffusion_rt.export.simplify import simplify
from diffusion_rt.export.trace import (
    Plan,
    Traceable,
    build,
    text_encoder,
    trace,
    unet,
    vae_decoder,
    vae_encoder,
)
from diffusion_rt.export.unet_parts import PARTS, unet_parts

PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
ALL_FILES = {file_name(graph, precision) for graph in GRAPHS for precision in PRECISIONS}

Tracer = Callable[[Traceable], ir.Model]
Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did: the folder, its manifest, tensors nobody reads, what was compared."""

    folder: Path
    manifest: Manifest
    copied_bytes: int
    unused: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


def silent(stage: str, done: int, total: int) -> None:
    """A Report that tells nobody."""


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    check: bool = True,
    report: Report = silent,
    tracer: Tracer = trace,
) -> Exported:
    """Write the graphs of `checkpoint` and its manifest into `output`, or leave it as it was.

    `output` is the checkpoint's own folder or one that gets copies of its files. Raises BadInput
    where the checkpoint or the folder does not fit, Fault where a graph differs from torch.
    """
    fields = _fields_of(checkpoint)
    networks = build_networks(checkpoint)
    weights, unused = bound_weights(checkpoint, networks)
    with ExitStack() as stack:
        in_place = stack.enter_context(prepared(checkpoint, output))
        found = Contents({}, {}) if in_place else _contents(checkpoint, output, report)
        report("copying", 0, total := sum(found.missing.values()))
        done = Counter(report, "copying", total)
        copies = stack.enter_context(copied(checkpoint, output, found.missing, done))
        hashes = {**found.there, **{copy.file: copy.sha256 for copy in copies}}
        graphs = list(graphs_of(networks, weights, output, precisions, report, tracer))
        files = records_of(checkpoint, output, hashes, report)
        manifest = _manifest(checkpoint, fields, files, graphs)
        content = manifest_bytes(manifest)
        outcomes = check_all(networks, weights, graphs, output, report) if check else ()
        publish(output, {graph.variant.file: graph.content for graph in graphs}, content, ALL_FILES)
    return Exported(output, manifest, total, tuple(unused), tuple(outcomes))


def _contents(checkpoint: Checkpoint, output: Path, report: Report) -> Contents:
    there = [file for file in checkpoint.files if (output / file).exists()]
    total = sum((output / file).stat().st_size for file in there)
    return contents(checkpoint, output, Counter(report, "comparing", total))


class Counter:
    """Adds up what is reported in pieces."""

    def __init__(self, report: Report, stage: str, total: int) -> None:
        self.report, self.stage, self.total, self.done = report, stage, total, 0

    def __call__(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        self.report(self.stage, self.done, self.total)


def plans(checkpoint: Checkpoint) -> dict[str, Plan]:
    """What is traced, by the name of its graph."""
    networks = checkpoint.networks
    first, second = (networks[name].config for name in ("text_encoder", "text_encoder_2"))
    channels = networks["unet"].config.get("in_channels", 4)
    positions = [config["max_position_embeddings"] for config in (first, second)]
    return {
        "text_encoder": text_encoder("text_encoder", positions[0], pooled=False),
        "text_encoder_2": text_encoder("text_encoder_2", positions[1], pooled=True),
        "unet": unet(
            channels, first["hidden_size"] + second["hidden_size"], second["projection_dim"]
        ),
        "vae_decoder": vae_decoder(channels),
        "vae_encoder": vae_encoder(),
    }


def build_networks(checkpoint: Checkpoint) -> dict[str, Traceable]:
    """Every network to be traced, without its weights."""
    return {
        name: build(plan, checkpoint.networks[plan.network].config)
        for name, plan in plans(checkpoint).items()
    }


def bound_weights(
    checkpoint: Checkpoint, networks: Mapping[str, Traceable]
) -> tuple[dict[str, dict[str, Weight]], list[str]]:
    """The stored tensor of each parameter, by network, and the files' tensors that none is."""
    found: dict[str, dict[str, Weight]] = {}
    unused: list[str] = []
    for traceable in networks.values():
        name = traceable.plan.network
        if name not in found:
            stored = checkpoint.networks[name].weights
            found[name], left = bind(name, traceable.parameters, stored)
            unused += [f"{name}: {tensor}" for tensor in left]
    return found, unused


def graphs_of(
    networks: Mapping[str, Traceable],
    weights: Mapping[str, Mapping[str, Weight]],
    folder: Path,
    precisions: Sequence[Precision],
    report: Report = silent,
    tracer: Tracer = trace,
) -> Iterator[Graph]:
    """Every graph in every precision, each network traced once."""
    for number, (name, traceable) in enumerate(networks.items()):
        report("tracing", number, len(networks))
        whole = tracer(traceable)
        simplify(whole)
        for graph, model in (_parts(whole) if name == "unet" else {name: whole}).items():
            for precision in precisions:
                bound = weights[traceable.plan.network]
                yield finished(graph, precision, model, bound, folder)
    report("tracing", len(networks), len(networks))


def _parts(whole: ir.Model) -> dict[str, ir.Model]:
    try:
        return unet_parts(whole)
    except ValueError as error:
        raise BadInput(
            f"unet/config.json: {error}; only SDXL base models can be exported so far"
        ) from None


def records_of(
    checkpoint: Checkpoint, folder: Path, known: Mapping[str, str | None], report: Report
) -> dict[str, FileRecord]:
    """What the manifest says of the checkpoint's files; `known` are hashes computed before."""
    sizes = {file: (folder / file).stat().st_size for file in checkpoint.files}
    todo = sum(size for file, size in sizes.items() if not known.get(file))
    report("hashing", 0, todo)
    count = Counter(report, "hashing", todo)
    found = {}
    for file, size in sizes.items():
        if sha256 := known.get(file):
            table = checkpoint.tables.get(file)
            record = FileRecord(size=size, sha256=sha256, table=table.sha256 if table else None)
        else:
            record = record_of(folder / file, count)
        found[file] = record
    return found


def check_all(
    networks: Mapping[str, Traceable],
    weights: Mapping[str, Mapping[str, Weight]],
    graphs: Sequence[Graph],
    folder: Path,
    report: Report = silent,
) -> list[Outcome]:
    """Check every graph against its network in torch. Raises Fault where one differs."""
    outcomes = []
    for number, (name, traceable) in enumerate(networks.items()):
        report("checking", number, len(networks))
        parts = PARTS if name == "unet" else (name,)
        candidates = [graph for graph in graphs if graph.name in parts]
        bound = weights[traceable.plan.network]
        outcomes += check_network(traceable.plan, traceable.config, bound, folder, candidates)
    report("checking", len(networks), len(networks))
    return outcomes


def _fields_of(checkpoint: Checkpoint) -> dict[str, object]:
    """All of the manifest that the configs say, checked before any work."""
    return {
        "name": "".join(c if c.isprintable() else "?" for c in checkpoint.name)[:300],
        "family": "sdxl",
        "schedule": record.schedule_record(checkpoint),
        "text_encoders": record.text_encoder_records(checkpoint),
        "unet": record.unet_record(checkpoint),
        "vae": record.vae_record(checkpoint),
        "force_zeros_for_empty_prompt": record.zeros_for_empty_prompt(checkpoint),
        "defaults": record.defaults(checkpoint),
        "exporter": record.exporter_versions(),
    }


def _manifest(
    checkpoint: Checkpoint,
    fields: Mapping[str, object],
    files: Mapping[str, FileRecord],
    graphs: Sequence[Graph],
) -> Manifest:
    variants: dict[str, dict[Precision, GraphVariant]] = {name: {} for name in GRAPHS}
    written = {}
    for graph in graphs:
        variants[graph.name][graph.precision] = graph.variant
        digest = hashlib.sha256(graph.content).hexdigest()
        written[graph.variant.file] = FileRecord(size=len(graph.content), sha256=digest)
    return Manifest(**fields, graphs=variants, files={**files, **written})  # type: ignore[arg-type]

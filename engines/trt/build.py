"""All engines of a model for the GPU at hand: what is missing is built, what is there is kept."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_rt.engines.artefact import locked, remove_partials
from diffusion_rt.engines.device.memory import short_of_memory
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.apart import run_apart
from diffusion_rt.engines.trt.key import Key, Machine, differences
from diffusion_rt.engines.trt.library import require_tensorrt, version_of
from diffusion_rt.engines.trt.options import WIDE_ATTENTION_FROM, Options
from diffusion_rt.engines.trt.places import (
    folder_to_build,
    folders_of_kind,
    latest_first,
    trust_plans,
)
from diffusion_rt.engines.trt.plan_file import (
    Constant,
    PlanHeader,
    is_ours,
    open_plan,
    plan_path,
    read_header,
    write_plan,
)
from diffusion_rt.engines.trt.prepare import Prepared, prepare
from diffusion_rt.engines.trt.profiles import Coverage, profiles_for
from diffusion_rt.engines.trt.timing_cache import TimingCache, timing_cache_for
from diffusion_rt.engines.trt.weights import map_weights
from diffusion_rt.kernels.driver import Device
from diffusion_rt.kernels.variant import ARCHS

if TYPE_CHECKING:
    from diffusion_rt.engines.trt.builder import Product

OLDEST_ARCH = min(ARCHS)  # what our own kernels are compiled for
WAYS_OUT = (
    "close other programs on the GPU, or build for less: fewer --buckets, a smaller --batch, a "
    "limit by --workspace"
)

MILLION = 1_000_000
Report = Callable[[str, int, int], None]  # stage, done, total
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """One graph's plan: kept as it was, or built, and then why."""

    path: Path
    header: PlanHeader
    kept: bool
    reasons: tuple[str, ...]  # why another was built; nothing where there was no plan


@dataclass(frozen=True, slots=True)
class Summary:
    """What a build leaves: the plans, and how much device memory it took at its peak."""

    folder: Path
    machine: Machine
    built: tuple[Built, ...]
    peak_device_bytes: int | None


def build(
    model: ModelFolder,
    coverage: Coverage,
    options: Options,
    *,
    device: Device,
    made_by: str,
    graphs: Sequence[str] | None = None,
    force: bool = False,
    trust: bool = False,
    report: Report = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> Summary:
    """Build the engines of `graphs` (all that the model has) where there is no such plan yet.

    `force` builds them anyway; `trust` keeps plans that somebody else built, where they fit.
    `report` hears of stages `verify` and `check` (bytes) and of each graph that is built (parts of
    a million); `say` of what a person wants to know. Ctrl-C ends it soon, with what was finished
    kept and nothing else left. Raises BadInput where TensorRT is missing, another build is under
    way or the options do not fit this GPU, and OutOfMemory.
    """
    machine = Machine(
        gpu=device.name, arch=device.arch, driver=device.driver, tensorrt=require_tensorrt()
    )
    options = options.settled(machine.tensorrt)
    check_options(options, machine)
    folder = folder_to_build(model, machine, options.builder.compatibility)
    with locked(folder, "building engines", key="build"):
        remove_partials(folder)
        _verify(model, report)
        for path in trust_plans(model) if trust else ():
            say(f"{path}: trusted from now on")
        maker = _Maker(model, coverage, options, device, machine, folder, made_by, report, say)
        wanted = [g for g in GRAPHS if g in (graphs or model.manifest.graphs)]
        built = tuple(maker.make(graph, force=force) for graph in wanted)
    maker.tell_of_timings()
    return Summary(folder, machine, built, maker.peak)


def check_options(options: Options, machine: Machine) -> None:
    """BadInput where a GPU or its TensorRT cannot do what the options ask for."""
    if machine.arch < OLDEST_ARCH:
        raise BadInput(
            f"engine trt: {machine.gpu} is sm_{machine.arch}; the denoising loop around TensorRT's "
            f"engines runs on kernels for sm_{OLDEST_ARCH} and newer; take --engine ort"
        )
    if options.wide_attention and version_of(machine.tensorrt) < WIDE_ATTENTION_FROM:
        wanted = ".".join(map(str, WIDE_ATTENTION_FROM))
        raise BadInput(
            f"attention in float32 wants TensorRT {wanted} or newer, installed is "
            f"{machine.tensorrt}; leave --float32-attention out"
        )


def _verify(model: ModelFolder, report: Report) -> None:
    """Hash the whole model: plans are keyed by what its manifest says."""
    total = sum(record.size for record in model.manifest.files.values())
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report("verify", done, total)

    model.verify(full=True, progress=progress)


@dataclass(slots=True)
class _Maker:
    """Makes the plans of one model, one after the other."""

    model: ModelFolder
    coverage: Coverage
    options: Options
    device: Device
    machine: Machine
    folder: Path
    made_by: str
    report: Report
    say: Say
    timings: TimingCache | None = None
    peak: int | None = None

    def make(self, graph: str, *, force: bool) -> Built:
        """The plan of one graph, from the folder if it is the right one."""
        prepared = prepare(self.model, graph, self.options.edits(graph))
        key = self.key(prepared)
        folder = self.latest(graph)
        have, why = self.there(folder, graph)
        if have is not None:
            why = differences(have.key, key)
            if not why and not force:
                return Built(plan_path(folder, graph), have, True, ())
            why = why or ["asked for"]
        if why:
            self.say(f"{graph}: built anew ({'; '.join(why)})")
        header = self.built(prepared, key)
        return Built(plan_path(self.folder, graph), header, False, tuple(why))

    def key(self, prepared: Prepared) -> Key:
        files, graph = self.model.manifest.files, prepared.graph
        locations = sorted({weight.location for weight in prepared.weights})
        return Key(
            graph=graph,
            onnx=files[prepared.variant.file].sha256,
            weights={location: files[location].sha256 for location in locations},
            edits=self.options.edits(graph),
            network=prepared.sha256,
            plugin=self.plugin(graph),
            profiles=profiles_for(self.model.manifest, graph, self.coverage),
            builder=self.options.builder,
            machine=self.machine,
        )

    def plugin(self, graph: str) -> str | None:
        """The hash of our attention kernel where a graph uses it, which TensorRT then knows."""
        if self.options.edits(graph).attention != "plugin":
            return None
        from diffusion_rt.engines.trt.plugin import register, sha256

        register()
        return sha256()

    def latest(self, graph: str) -> Path:
        """The folder whose plan of a graph would be run now.

        It is not the one for new plans where the model's own folder cannot be written and has one.
        """
        folders = folders_of_kind(self.model, self.machine, self.options.builder.compatibility)
        found = latest_first(folders, graph)
        ours = (folder for folder in found if is_ours(folder, graph))
        return next(ours, next(iter(found), self.folder))

    def there(self, folder: Path, graph: str) -> tuple[PlanHeader | None, list[str]]:
        """The header of the plan there is, if every byte of it is as it was written; else why not.

        Neither, where there is no plan.
        """
        try:
            header = read_header(folder, graph)
            if header is None:
                return None, []
            done, total = 0, header.plan_bytes

            def progress(count: int) -> None:
                nonlocal done
                done += count
                self.report("check", done, total)

            with open_plan(folder, graph, progress):
                return header, []
        except BadInput as damaged:
            return None, [str(damaged)]

    def built(self, prepared: Prepared, key: Key) -> PlanHeader:
        """Build and write one plan."""
        self.timings = self.timings or timing_cache_for(self.machine)
        graph, free = prepared.graph, self.device.memory().free
        if prepared.weight_bytes > free:
            raise self.short(graph, prepared.weight_bytes, free)
        started = time.perf_counter()
        try:
            product = self.run(prepared, key, free)
        except OutOfMemory as short:
            raise OutOfMemory(
                f"{short}; its weights alone take {prepared.weight_bytes / 1e9:.3f} GB, "
                f"{free / 1e9:.3f} GB was free; {WAYS_OUT}"
            ) from None
        except Fault as failed:
            if not key.edits.wide_attention:
                raise
            raise Fault(f"{failed}; if it is for the attention: --no-float32-attention") from None
        if product.short:
            self.say(f"{graph}: built, but what it needs to run is not known: {product.short}")
        header = PlanHeader(
            key=key,
            plan_bytes=product.plan.nbytes,
            plan_sha256=hashlib.sha256(product.plan).hexdigest(),
            inputs=prepared.variant.inputs,
            outputs=prepared.variant.outputs,
            scratch_bytes=product.scratch,
            constants=tuple(
                Constant(name=name, dtype=numbers.dtype, data=numbers.data.tobytes().hex())
                for name, numbers in product.added.items()
            ),
            seconds=round(time.perf_counter() - started, 3),
            made_by=self.made_by,
        )
        write_plan(self.folder, header, product.plan)
        return header

    def run(self, prepared: Prepared, key: Key, free: int) -> "Product":
        """The plan and what its profiles need, from TensorRT."""
        from diffusion_rt.engines.trt.builder import build_plan, examine
        from diffusion_rt.engines.trt.loading import checkpoint_weights
        from diffusion_rt.engines.trt.messages import Messages
        from diffusion_rt.engines.trt.monitor import Monitor

        timings, messages = self.timings, Messages()
        assert timings is not None
        if key.builder.stripped:
            weights = checkpoint_weights(self.model, prepared)
        else:
            weights = map_weights(self.model.path, prepared.weights, self.folder)

        def progress(share: float) -> None:
            self.report(prepared.graph, round(MILLION * share), MILLION)
            self.peak = max(self.peak or 0, free - self.device.memory().free)

        monitor = Monitor(progress)

        def work() -> "Product":
            product = build_plan(
                prepared,
                weights,
                key.profiles,
                key.builder,
                timings=timings,
                monitor=monitor,
                messages=messages,
                plugins=key.plugin is not None,
            )
            return examine(product, prepared, weights, key.builder, messages)

        return run_apart(work, monitor.cancel)

    def short(self, graph: str, needed: int, free: int) -> OutOfMemory:
        """The error for a graph whose weights alone do not fit."""
        return OutOfMemory(f"{short_of_memory(f'building {graph}', needed, free)}; {WAYS_OUT}")

    def tell_of_timings(self) -> None:
        """Say once what went wrong with the timings: it costs time, nothing else."""
        if self.timings is None:
            return
        if self.timings.damaged:
            self.say(f"{self.timings.path} could not be used; its timings were taken anew")
        if self.timings.unwritten:
            self.say(f"timings were not kept: {self.timings.unwritten}")


def scratch_by_profile(header: PlanHeader) -> Mapping[str, int]:
    """Device memory by profile's name, weights aside; nothing where it is not known."""
    names = [profile.name for profile in header.key.profiles]
    return dict(zip(names, header.scratch_bytes, strict=False))

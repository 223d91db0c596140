"""What `diffusion-rt build --engine native` makes: kernels, tactics, packed weights."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import Arrays
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.arrangement import Arrangement
from diffusion_rt.engines.native.backend import usual_precision
from diffusion_rt.engines.native.graphs import NativeGraphs, check_chip
from diffusion_rt.engines.native.kept_weights import pack, whole
from diffusion_rt.engines.native.libraries import open_libraries
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.measure import measure
from diffusion_rt.engines.native.needed import Target, needed, runs, target_of
from diffusion_rt.engines.native.overlapping import FIRST_ARCH, LOOP, choose_overlap
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.tactics import Tactics, key_of, path_with_libraries
from diffusion_rt.engines.native.ways import Chip, Library
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import ARCHS, Variant
from diffusion_rt.kernels.driver import Device, NoDriver, limits_of, open_device

Report = Callable[[str, int, int], None]  # (stage, done, total)
ROWS = (2, 1)  # of the UNet for each image: with guidance and without

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """One thing that a build has made, or found made."""

    name: str
    path: Path
    nbytes: int
    seconds: float
    kept: bool  # it was there


def build(
    model: ModelFolder,
    *,
    buckets: Sequence[tuple[int, int]] = (),
    images: Sequence[int] = (1,),
    archs: tuple[int, ...] | None = None,
    force: bool = False,
    libraries: bool = False,
    overlap: bool = True,
    pack_weights: bool = False,
    progress: Report = lambda stage, done, total: None,
) -> list[Built]:
    """Compile every kernel that the model's plans may launch, and measure tactics on the GPU here.

    `buckets` are sizes in pixels, the model's own where there are none, each with every number of
    `images` that are denoised together, with guidance and without: tactics of other sizes are those
    that ship, or the likely fastest. With `archs` kernels are compiled for these chips and nothing
    is measured. Kernels are kept under the hash of all they are made from; `force` measures and
    packs anew. With `libraries` those that are installed are measured too, and run where they are
    faster, until a build without. Without `overlap` launches that overlap are not tried, and are
    off until a build with. With `pack_weights` those of every graph that a prompt runs are kept as
    a device wants them. Raises BadInput where there is no GPU and no `archs`, no compiler, none of
    the libraries asked for, no room for weights, and where the model has a node that no kernel
    runs.
    """
    precision = usual_precision(model)
    target = target_of(model, precision, buckets=buckets, images=images, rows=ROWS)
    images_kept = ImageCache(cache_folder("kernels"))
    if archs is not None:
        _check_archs(archs)
        if libraries:
            raise BadInput("--libraries are measured on the GPU here; leave --archs out")
        kernels = [_compiled(target, images_kept, arch, progress) for arch in archs]
        return kernels + (packed(target, force=force, progress=progress) if pack_weights else [])
    with translated("diffusion-rt build --engine native"):
        try:
            device: Device = open_device()
        except NoDriver as missing:
            raise BadInput(
                f"no GPU to build for here ({missing}); name chips with --archs, such as --archs 90"
            ) from None
    gpu = Gpu(device, images_kept)
    try:
        check_chip(gpu)
        made = [_prepared(target, gpu, images_kept, progress)]
        folder = cache_folder("tactics")
        opened = _opened(device) if libraries else ()
        tactics = Tactics(folder, key_of(device, opened))
        made.append(
            measured(
                target,
                gpu,
                tactics,
                force=force,
                libraries=opened,
                overlap=overlap,
                progress=progress,
            )
        )
        if not libraries:
            path_with_libraries(folder, device).unlink(missing_ok=True)
    finally:
        gpu.close()
    return made + (packed(target, force=force, progress=progress) if pack_weights else [])


def measured(
    target: Target,
    gpu: Gpu,
    tactics: Tactics,
    *,
    force: bool,
    progress: Report,
    libraries: tuple[Library, ...] = (),
    overlap: bool = True,
    graphs: Collection[str] = GRAPHS,
) -> Built:
    """Run each of `graphs` at every size once, and measure what is not known yet.

    Then, with `overlap`, the graph of the loop is run whole, its launches overlapping and not.
    What there is no memory for is said and left out, but for the first size of a graph. `libraries`
    are closed.
    """
    started = time.perf_counter()
    changed = force or (not overlap and tactics.overlap is not None)
    if force:
        tactics.forget()
    if not overlap:
        tactics.overlap = None
    count = 0
    with tactics.locked():
        opened = NativeGraphs(target.model, gpu, precision=target.precision, libraries=libraries)
        tried: set[str] = set()
        try:
            for graph, sizes in runs(target):
                if graph not in graphs:
                    continue
                try:
                    count += _measure(opened, graph, sizes, tactics, progress)
                except OutOfMemory as short:
                    if graph not in tried:
                        raise
                    _LOG.warning("not measured: %s", short)
                tried.add(graph)
            if count or changed or not tactics.path.exists():
                tactics.save()
            wanted = overlap and LOOP in tried and tactics.overlap is None
            if wanted and gpu.device.arch >= FIRST_ARCH:
                count += 1
                opened.choose_anew(tactics.choose)
                with translated(f"measure {LOOP}"):
                    sizes = next(sizes for graph, sizes in runs(target) if graph == LOOP)
                    choose_overlap(opened, LOOP, sizes, tactics)
        finally:
            opened.close()
    seconds = time.perf_counter() - started
    return Built("tactics", tactics.path, tactics.path.stat().st_size, seconds, kept=not count)


def packed(target: Target, *, force: bool, progress: Report) -> list[Built]:
    """Pack the weights of each graph, in the arithmetic it usually runs in; no device is asked.

    A file that is there and whole is kept. Before the first is made, the model's files are hashed.
    """
    model, found, verified = target.model, [], False
    for graph, sizes in dict(runs(target)).items():  # one size: weights do not depend on it
        begun = time.perf_counter()
        dtype = arithmetic(model, graph, None, target.precision)
        plan = plan_of(model, graph, sizes, dtype)
        arrangement = Arrangement(plan.weights.values(), plan.constants)
        path = None if force else whole(model, graph, dtype, arrangement)
        kept = path is not None
        if path is None:
            if not verified:
                total = sum(record.size for record in model.manifest.files.values())
                model.verify(full=True, progress=_counted(progress, "verify", total))
                verified = True
            told = _counted(progress, f"pack the weights of {graph}", arrangement.nbytes)
            path = pack(model, graph, dtype, arrangement, told)
        seconds = time.perf_counter() - begun
        found.append(Built(f"{graph} weights", path, path.stat().st_size, seconds, kept))
    return found


def _counted(progress: Report, stage: str, total: int) -> Callable[[int], None]:
    """What hears of more bytes, and tells how many there were."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return more


def _compiled(target: Target, images: ImageCache, arch: int, progress: Report) -> Built:
    """Kernels for a chip that need not be here."""
    begun, made = time.perf_counter(), len(images.compiled)
    variants = needed(target, Chip(limits_of(arch)))
    with translated("compile the kernels"):
        images.fill([(variant, arch) for variant in variants], _stage(arch, progress))
    return _kernels(variants, images, arch, begun, made)


def _prepared(target: Target, gpu: Gpu, images: ImageCache, progress: Report) -> Built:
    """Kernels for the chip here, in the form that its driver takes."""
    begun, made = time.perf_counter(), len(images.compiled)
    variants = needed(target, Chip(gpu.device.limits))
    gpu.prepare(variants, _stage(gpu.device.arch, progress))
    return _kernels(variants, images, gpu.compiled_for, begun, made)


def _kernels(
    variants: Sequence[Variant], images: ImageCache, arch: int | None, begun: float, made: int
) -> Built:
    nbytes = sum(len(images.image(variant, arch)) for variant in variants)
    name = f"{len(variants)} kernels " + ("as PTX" if arch is None else f"for sm_{arch}")
    seconds = time.perf_counter() - begun
    return Built(name, images.folder, nbytes, seconds, kept=len(images.compiled) == made)


def _stage(arch: int, progress: Report) -> Callable[[int, int], None]:
    return lambda done, total: progress(f"compile for sm_{arch}", done, total)


def _opened(device: Device) -> tuple[Library, ...]:
    """The libraries that are here; BadInput where none is."""
    found = open_libraries(device)
    if not found:
        raise BadInput(
            "--libraries: none is here; pip install nvmath-python nvidia-cublas (610 MB) for "
            "products, nvidia-cudnn-frontend nvidia-cudnn-cu13 for convolutions, or leave "
            "--libraries out"
        )
    return found


def _check_archs(archs: Sequence[int]) -> None:
    for arch in archs:
        if arch not in ARCHS:
            known = ", ".join(map(str, ARCHS))
            raise BadInput(f"--archs: got {arch}, wants some of {known}; newer chips take PTX")


def _measure(
    graphs: NativeGraphs, graph: str, sizes: Mapping[str, int], tactics: Tactics, progress: Report
) -> int:
    loaded = graphs.loaded(graph)
    program = loaded.planned(sizes)
    if all(tactics.knows(found) for found in program.options):
        return 0
    device, arrays = graphs.gpu.device, Arrays(graphs.gpu.device)
    engine = loaded.open()
    with translated(f"measure {graph}"), device.stream() as stream:
        try:
            bound = {
                name: (program.plan.buffers[name].shape, spec.dtype)
                for name, spec in {**engine.inputs, **engine.outputs}.items()
            }
            (places,) = arrays.make("what it measures with", bound)
            engine.bind(places)
            graphs.arena.reserve(*program.most)
            for place in places.values():
                stream.fill(place, 0)  # such as ids of tokens, which must be some
            engine.enqueue(stream)
            stream.synchronize()
            return measure(
                program,
                engine.places(),
                tactics,
                device=device,
                stream=stream,
                kernel=graphs.gpu.kernel,
                progress=lambda done, total: progress(f"measure {graph}", done, total),
            )
        finally:
            engine.close()
            arrays.close()

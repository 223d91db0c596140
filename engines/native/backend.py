"""The native engine as a backend: on a GPU by our kernels, or on the host by their references."""

import logging
from collections.abc import Sequence

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.budget import BudgetedDevice
from diffusion_rt.engines.native.executor import Choose
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.libraries import open_libraries
from diffusion_rt.engines.native.needed import Target, target_of
from diffusion_rt.engines.native.overlapping import LOOP
from diffusion_rt.engines.native.tactics import Tactics, key_of, path_with_libraries
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.engines.spec import GRAPHS, Precision
from diffusion_rt.kernels.cache import Progress

_LOG = logging.getLogger(__name__)


def open_native(
    folder: ModelFolder,
    *,
    precision: Precision | None = None,
    budget: int | None = None,
    gpu: Gpu | None = None,
    overlap: bool | None = None,
    libraries: bool = True,
    choose: Choose | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> DeviceBackend:
    """The graphs of a model folder on a GPU, the first one where none is given.

    `precision` is float16 where it is None and the folder has it. `budget` is how many bytes of
    device memory to take at most. With `overlap` kernels start before the one ahead has ended; None
    is so in `unet_step` where a build has found it right and faster here, and nowhere else.
    `libraries` are opened where a build has measured with them. `choose` takes one of an
    operation's ways; without it, the fastest that was measured here, or that a shipped table has,
    or else the likely fastest. Kernels for a picture of `size` (width and height in pixels, the
    model's own for None) are compiled here where they are missing, and `progress` hears of them;
    what another size wants beside them is compiled when it is drawn. Raises BadInput where there is
    no driver or no GPU, where the GPU is too old, and where a kernel has to be compiled and cannot
    be. Where anything is raised `gpu` is closed.
    """
    gpu = gpu or open_gpu()
    try:
        if budget is not None:
            gpu.device = BudgetedDevice(gpu.device, budget)
        precision = precision or usual_precision(folder)
        target = target_of(folder, precision, buckets=[size] if size else [])
        graphs = _graphs(target, gpu, overlap=overlap, libraries=libraries, choose=choose)
        try:
            graphs.compile(target, progress)
        except BaseException:
            graphs.close()
            raise
    except BaseException:
        gpu.close()
        raise
    return DeviceBackend(graphs, gpu)


def _graphs(
    target: Target, gpu: Gpu, *, overlap: bool | None, libraries: bool, choose: Choose | None
) -> NativeGraphs:
    """The graphs, their ways chosen by what is known of this device."""
    measured = cache_folder("tactics")
    wanted = libraries and path_with_libraries(measured, gpu.device).exists()
    opened = open_libraries(gpu.device) if wanted else ()
    try:
        tactics = Tactics(measured, key_of(gpu.device, opened))
        for wrong in tactics.rebuilt:
            _LOG.warning("%s", wrong)
        return NativeGraphs(
            target.model,
            gpu,
            precision=target.precision,
            choose=choose or tactics.choose,
            overlap=_overlapping(overlap, tactics),
            libraries=opened,
        )
    except BaseException:
        for library in opened:
            library.close()
        raise


def _overlapping(asked: bool | None, tactics: Tactics) -> Sequence[str]:
    """The graphs whose launches overlap: all or none as asked, or what a build has tried."""
    if asked is None:
        return (LOOP,) if tactics.overlap else ()
    return GRAPHS if asked else ()


def open_host(folder: ModelFolder, *, precision: Precision | None = None) -> Backend:
    """The same plans by the NumPy references, on any machine, slowly."""
    from diffusion_rt.engines.native.host_backend import HostBackend

    return HostBackend(folder, precision=precision or "float32")


def usual_precision(folder: ModelFolder) -> Precision:
    """float16 where every graph was exported for it."""
    graphs = folder.manifest.graphs.values()
    return "float16" if all("float16" in variants for variants in graphs) else "float32"

"""TensorRT as a backend."""

from contextlib import ExitStack, closing

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.spec import Precision
from diffusion_rt.engines.trt.library import require_tensorrt


def open_trt(
    model: ModelFolder, gpu: Gpu | None = None, *, precision: Precision | None = None
) -> DeviceBackend:
    """The plans of a model folder on a GPU, the first one where none is given.

    `precision` is what the UNet must have been built in, None for any. Raises BadInput where there
    is no driver, no GPU, no TensorRT, or no plan for this GPU: each with its fix.
    """
    version = require_tensorrt()
    from diffusion_rt.engines.trt.graphs import TrtGraphs

    with ExitStack() as held:
        if gpu is None:
            gpu = held.enter_context(closing(open_gpu()))
        graphs = held.enter_context(closing(TrtGraphs(model, gpu, version)))
        if precision is not None:
            graphs.check_precision("unet_step", precision)
        held.pop_all()  # closed by the backend from now on
    return DeviceBackend(graphs, gpu)

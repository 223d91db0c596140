"""`pytest -p support.as_real -m trt`: the tests that want a GPU, with the simulated TensorRT there.

So what only runs where there are a GPU and the libraries is run at least once without them.
"""

import sys

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.kernels.driver.simulator import Simulator
from support import simulated_tensorrt, tensorrt_bench
from support.device_graphs import simulated_gpu
from support.simulated_tensorrt import plugin
from support.simulated_tensorrt.rules import attach


def open_gpu(ordinal: int = 0) -> Gpu:
    """A simulated GPU, where the first one of the machine is asked for."""
    sys.modules["tensorrt.plugin"] = plugin
    gpu = simulated_gpu()
    assert isinstance(gpu.device, Simulator)
    attach(gpu.device)
    return gpu


sys.modules["tensorrt"] = simulated_tensorrt
vars(tensorrt_bench)["open_gpu"] = open_gpu

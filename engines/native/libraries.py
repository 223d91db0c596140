"""Libraries whose operations are measured beside ours, where they are installed; none is needed."""

import logging
from collections.abc import Callable, Mapping

from diffusion_rt.engines.native import cublas_ways, cudnn_ways
from diffusion_rt.engines.native.ways import Library
from diffusion_rt.kernels.driver import Device

_LOG = logging.getLogger(__name__)

KNOWN: Mapping[str, Callable[[Device], Library]] = {
    "cuBLASLt": cublas_ways.load,
    "cuDNN": cudnn_ways.load,
}


def open_libraries(device: Device) -> tuple[Library, ...]:
    """Those that are here and open on the device; why another does not is logged, and no error."""
    found = []
    for name, load in KNOWN.items():
        try:
            found.append(load(device))
        except Exception as error:  # Whatever it is, our own kernels run without it.
            said = str(error).strip().split("\n")[0]
            _LOG.info("%s is not used: %s: %s", name, type(error).__name__, said)
    return tuple(found)

"""What goes wrong on a device, as the two kinds of failure a user can meet."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.compile import CompileError


def with_a_way_out(error: OutOfMemory) -> OutOfMemory:
    """The same error, with what may be done about it."""
    return OutOfMemory(
        f"{error}; end what else uses the GPU (nvidia-smi), ask for a smaller size, or take "
        "--engine ort"
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the driver's errors in the block into BadInput, OutOfMemory or Fault about `what`."""
    try:
        yield
    except driver.OutOfMemory as error:
        raise OutOfMemory(f"{what}: {error}") from None
    except (driver.NoDriver, CompileError) as error:
        raise BadInput(f"{what}: {error}") from None
    except driver.DeviceError as error:
        raise Fault(f"{what}: {error}") from None

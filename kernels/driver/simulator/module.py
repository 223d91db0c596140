"""Simulated kernel images: host libraries, or plain Python functions."""

import ctypes
import tempfile
from collections.abc import Callable, Sequence

from diffusion_rt.kernels.driver.arguments import Packed, Parameter
from diffusion_rt.kernels.driver.errors import BadImage, DeviceError, DeviceLost
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.driver.resource import Resource

HostKernel = Callable[[Launch, Packed], None]
"""A kernel on the host: it gets the launch and the arguments; pointers are host addresses."""

Lookup = Callable[[str], HostKernel | None]
OpenImage = Callable[[bytes], Lookup]


class SimulatedKernel:
    """A kernel of an image."""

    def __init__(
        self, module: Resource, run: HostKernel, name: str, parameters: Sequence[Parameter]
    ) -> None:
        self.name = name
        self.parameters = tuple(parameters)
        self._module = module
        self._run = run

    def require_open(self) -> None:
        """Raise Misuse once the image is closed."""
        self._module.require_open()

    def bind(self, launch: Launch, packed: Packed) -> Callable[[], None]:
        """The work of one launch; its arguments are those of now."""
        return lambda: self._run(launch, packed)


class SimulatedModule(Resource):
    """An image that was opened."""

    def __init__(self, owner: Resource, find: Lookup) -> None:
        super().__init__(owner)
        self._find = find

    def kernel(self, name: str, parameters: Sequence[Parameter]) -> SimulatedKernel:
        self.require_open()
        run = self._find(name)
        if run is None:
            raise DeviceError(f"find the kernel {name}: the image has no such kernel", 500)
        return SimulatedKernel(self, run, name, parameters)


def host_library(image: bytes) -> Lookup:
    """Load the bytes of a library made with the kernels' shim (`sources/host_cuda.h`)."""
    # A file of its own for each: the loader takes a name it has seen for the library it knows.
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(image)
        file.flush()
        try:
            library = ctypes.CDLL(file.name)
        except OSError as error:
            text = str(error).replace("\n", " ")
            raise BadImage(f"no image for the simulator: {text}; compile it for the host") from None

    def find(name: str) -> HostKernel | None:
        function = getattr(library, f"host_launch_{name}", None)
        if function is None:
            return None
        function.restype = ctypes.c_char_p

        def run(launch: Launch, packed: Packed) -> None:
            size = ctypes.c_uint * 3
            trouble = function(
                size(*launch.grid),
                size(*launch.block),
                size(*(launch.cluster or (1, 1, 1))),
                ctypes.c_uint(launch.shared_bytes),
                ctypes.c_void_p(packed.address),
            )
            if trouble is not None:
                raise DeviceLost(f"{name}: {trouble.decode()}", 719)

        return run

    return find

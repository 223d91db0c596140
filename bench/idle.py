"""A GPU that does nothing, over a driver whose calls return at once: what is left is our own time.

Two of them: `idle` is the interface of a driver in Python, which leaves the loop; `idle-cuda` the
real bindings over a library that does nothing, which leaves all but the driver's own time. Device
memory is host memory that nobody computes on. Copies are made when the host waits for a stream, so
that what was sent comes back and no copy stands in the way before.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.contender import Clock
from diffusion_rt.bench.flags import BINDINGS
from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.protocol import Denoiser
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.cache import Progress
from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.driver import Launch, Limits, TensorMap, limits_of
from diffusion_rt.kernels.driver.arguments import TENSOR_MAP_BYTES, Parameter, Value
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Closing, Memory, Span

ARCH = 90
MEMORY = Memory(free=1 << 37, total=1 << 37)


class Idle(Closing):
    """What can be closed, as often as one likes."""

    def close(self) -> None:
        """Nothing is held but memory, which Python gives back."""


class IdleBuffer(Idle):
    """Memory, of the device or pinned; pages that nobody touches cost nothing."""

    def __init__(self, nbytes: int, copies: "Copies") -> None:
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        skip = -raw.ctypes.data % ALIGNMENT
        self.array: NDArray[np.uint8] = raw[skip : skip + nbytes]
        self.address = int(self.array.ctypes.data)
        self.nbytes = nbytes
        self._copies = copies

    def close(self) -> None:
        """No copy from or to here may come later."""
        self._copies.make()


class Copies:
    """What was to be copied since the host last waited, in order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int]] = []  # to, from, bytes

    def make(self) -> None:
        """Copy."""
        for destination, source, nbytes in self.waiting:
            ctypes.memmove(destination, source, nbytes)
        self.waiting.clear()


class IdleEvent(Idle):
    """A point that is always passed."""

    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nobody is waited for."""

    def elapsed_ms(self, since: Any) -> float:
        return 0.0


class IdleGraph(Idle):
    """Captured work that is not done."""

    def replay(self, stream: Any) -> None:
        """Nothing is enqueued."""

    def update(self, stream: Any, enqueue: Callable[[], None]) -> None:
        enqueue()


class IdleStream(Idle):
    """Copies, in order, and nothing else."""

    handle = 1

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._capturing = False

    def copy(self, destination: Span, source: Span) -> None:
        if not self._capturing:
            self._copies.waiting.append((destination.address, source.address, source.nbytes))

    def fill(self, destination: Span, byte: int) -> None:
        """Memory stays as it is."""

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Value]) -> None:
        """Nothing is started."""

    def record(self, event: Any) -> None:
        """Every event is passed."""

    def wait(self, event: Any) -> None:
        """Every event is passed."""

    def capture(self, enqueue: Callable[[], None]) -> IdleGraph:
        self._capturing = True
        try:
            enqueue()
        finally:
            self._capturing = False
        return IdleGraph()

    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        self._copies.make()


class IdlePool(Idle):
    """Memory in stream order is memory like any other."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies

    def allocate(self, nbytes: int, stream: Any) -> IdleBuffer:
        return IdleBuffer(nbytes, self._copies)

    def trim(self, keep: int = 0) -> None:
        """Nothing is kept."""


class IdleKernel:
    """The name of a kernel, and its parameters."""

    def __init__(self, name: str, parameters: Sequence[Parameter]) -> None:
        self.name, self.parameters = name, parameters


class IdleModule(Idle):
    """An image that was not read."""

    def kernel(self, name: str, parameters: Sequence[Parameter]) -> IdleKernel:
        return IdleKernel(name, parameters)


class IdleDevice(Idle):
    """The interface of a driver (`kernels.driver.interface`), without rules or arithmetic."""

    name = "nothing"
    arch = ARCH
    driver = "13.0"

    def __init__(self) -> None:
        self._copies = Copies()

    @property
    def limits(self) -> Limits:
        return limits_of(ARCH)

    def memory(self) -> Memory:
        return MEMORY

    def allocate(self, nbytes: int) -> IdleBuffer:
        return IdleBuffer(nbytes, self._copies)

    def pinned(self, nbytes: int) -> IdleBuffer:
        return IdleBuffer(nbytes, self._copies)

    def pool(self) -> IdlePool:
        return IdlePool(self._copies)

    def stream(self) -> IdleStream:
        return IdleStream(self._copies)

    def event(self, *, timed: bool = False) -> IdleEvent:
        return IdleEvent()

    def tensor_map(self, described: TensorMap) -> bytes:
        return bytes(TENSOR_MAP_BYTES)

    def load(self, image: bytes) -> IdleModule:
        return IdleModule()


class NoImages:
    """Kernels that are not compiled."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        return b"nothing"

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        """Nothing is made."""


class IdleEngine(Idle):
    """A graph with its signature, which is not run."""

    generation = 0

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """All arrays are as good as any."""

    def enqueue(self, stream: Any) -> None:
        """Nothing is put on the stream."""


class IdleGraphs(Idle):
    """The graphs of a model folder, of which only the manifest is read."""

    name = "idle"

    def __init__(self, folder: ModelFolder) -> None:
        half = all("float16" in variants for variants in folder.manifest.graphs.values())
        self._precision: Precision = "float16" if half else "float32"
        self._folder = folder

    def open(self, graph: str, precision: Precision | None = None) -> IdleEngine:
        variant = self._folder.variant(graph, precision or self._precision)
        return IdleEngine(variant.inputs, variant.outputs)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Any size is taken."""

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        return images


class LoopClock:
    """A denoiser whose evaluations are timed together, from the first to the end of the last.

    Noise is drawn before: on a device it is drawn while others compute.
    """

    def __init__(self, denoiser: Denoiser, tell: Callable[[float], None], clock: Clock) -> None:
        """`tell` is given the mean of the seconds of an evaluation, loop by loop."""
        self._denoiser, self._tell, self._clock = denoiser, tell, clock
        self.most_images = denoiser.most_images
        self.close = denoiser.close

    def __call__(
        self,
        *,
        noise: Iterable[NDArray[np.float32]],
        report: Callable[[int, int], None],
        **given: Any,
    ) -> NDArray[np.float32]:
        """Denoise; see `engines.protocol.Denoiser`."""
        drawn = list(noise)
        begun = 0.0

        def timed(done: int, total: int) -> None:
            nonlocal begun
            if done == 0:
                begun = self._clock()
            report(done, total)
            if done == total:
                self._tell((self._clock() - begun) / total)

        return self._denoiser(noise=drawn, report=timed, **given)


def open_idle(folder: ModelFolder, engine: str) -> DeviceBackend:
    """The backend of every engine on a GPU, over a device that does nothing: `engine` of IDLE.

    `idle-cuda` is for a process of its own. Raises BadInput where that cannot be had.
    """
    if engine == BINDINGS:
        from diffusion_rt.bench.idle_driver import open_driver

        gpu = open_driver()
    else:
        gpu = Gpu(IdleDevice(), NoImages())
    return DeviceBackend(IdleGraphs(folder), gpu)

"""The graphs of any host backend as those of a simulated device, and such a device with kernels."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import DeviceArray, DeviceEngine
from diffusion_rt.engines.protocol import Backend, Engine
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.cache import Progress
from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.compile import CompileError, host_library
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.queue import Work


class HostImages:
    """Kernels compiled for the host, each once for all tests."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        """A host library; skips the test where there is no compiler."""
        return _image(variant)

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        """Each is made when it is loaded."""


@functools.cache
def _image(variant: Variant) -> bytes:
    try:
        return host_library([variant])
    except CompileError as error:
        if "does not compile" in str(error):
            raise
        pytest.skip(f"skipped: {error}")


def simulated_gpu(**options: Any) -> Gpu:
    """A simulated device, with the simulator's options, whose kernels run on the host."""
    return Gpu(Simulator(**options), HostImages())


class HostEngine:
    """A host engine that runs when the simulated stream gets to it, on simulated memory."""

    def __init__(self, graph: str, engine: Engine, gpu: Gpu, graphs: "HostGraphs") -> None:
        self.inputs: Mapping[str, TensorSpec] = engine.inputs
        self.outputs: Mapping[str, TensorSpec] = engine.outputs
        self._graph, self._engine, self._graphs = graph, engine, graphs
        assert isinstance(gpu.device, Simulator)
        self._device = gpu.device
        self._bound: Mapping[str, DeviceArray] = {}
        self.closed = False

    @property
    def generation(self) -> int:
        return self._graphs.generation

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        assert not self.closed
        space = self._device.space
        for place in buffers.values():
            assert place.address % 256 == 0
            space.find(place.address, place.nbytes, self._graph)
        self._bound = dict(buffers)
        self._graphs.binds.append((self._graph, self._bound))

    def enqueue(self, stream: Any) -> None:
        assert not self.closed
        assert self._bound, "enqueued before bound"
        space, engine, bound = self._device.space, self._engine, self._bound
        graph, runs = self._graph, self._graphs.runs

        def run() -> None:
            engine.bind(
                {
                    name: space.view(p.address, p.nbytes).view(p.dtype).reshape(p.shape)
                    for name, p in bound.items()
                }
            )
            engine.enqueue()
            runs.append(graph)

        touches = tuple(space.find(p.address, p.nbytes, self._graph) for p in bound.values())
        self._device.stream_of(stream.handle).submit(Work(self._graph, "engine", run, touches))
        self._graphs.enqueued.append(self._graph)

    def close(self) -> None:
        self.closed = True


class HostGraphs:
    """The graphs of a host backend on a simulated device; notes what is done with them."""

    def __init__(self, backend: Backend, gpu: Gpu) -> None:
        self.generation = 0
        self.binds: list[tuple[str, Mapping[str, DeviceArray]]] = []
        self.enqueued: list[str] = []
        self.runs: list[str] = []
        self.engines: list[HostEngine] = []
        self._backend, self._gpu = backend, gpu
        self._loaded: dict[tuple[str, Precision | None], Engine] = {}

    @property
    def name(self) -> str:
        return "host"

    def open(self, graph: str, precision: Precision | None = None) -> DeviceEngine:
        key = (graph, precision)
        if key not in self._loaded:
            self._loaded[key] = self._backend.load(graph, precision)
        engine = HostEngine(graph, self._loaded[key], self._gpu, self)
        self.engines.append(engine)
        return engine

    def check(self, graph: str, sizes: Mapping[str, int]) -> None: ...

    def most_images(
        self, latent_shape: tuple[int, int, int], *, rows: int, tokens: int, images: int
    ) -> int:
        return images

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

"""A device engine that reads and writes the host's arrays: text encoders and the VAE run so."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.device.captured import CapturedEngine
from diffusion_rt.engines.device.errors import translated, with_a_way_out
from diffusion_rt.engines.device.memory import Arrays, Pinned
from diffusion_rt.engines.device.protocol import DeviceArray, DeviceEngine
from diffusion_rt.engines.device.recent import Recent
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.kernels.driver import Device, part
from diffusion_rt.kernels.driver.interface import Span

KEPT = 4
"""Sizes whose arrays and captured run are kept, the latest used."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Transfer = tuple[Span, NDArray[Any]]


class Staged:
    """Copies inputs through pinned memory to the device, runs there, and copies outputs back."""

    def __init__(self, graph: str, opened: Callable[[], DeviceEngine], device: Device) -> None:
        """`opened` gives an engine of the graph, one for each size, closed with this one.

        All work is on a stream of its own.
        """
        self._graph, self._opened, self._device = graph, opened, device
        # Never bound: it keeps the weights while sizes come and go.
        self._engine = opened()
        try:
            with translated(graph):
                self._stream = device.stream()
        except BaseException:
            self._engine.close()
            raise
        self._sent, self._fetched = Pinned(device), Pinned(device)
        self._sizes: Recent[Shapes, _Size] = Recent(KEPT)
        self._bound: _Size | None = None
        self._inputs: list[Transfer] = []
        self._outputs: list[Transfer] = []
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph reads."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph writes."""
        return self._engine.outputs

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Check and keep the arrays; device memory is taken where their shapes are new.

        What is not among `only` stays on the device.
        """
        if self._closed:
            raise BadInput(f"{self._graph}: the engine is closed; load it again")
        check_buffers(self._graph, self.inputs, self.outputs, buffers, only)
        shapes = tuple((name, buffers[name].shape) for name in (*self.inputs, *self.outputs))
        self._bound = None
        try:
            with translated(self._graph):
                size = self._sizes.use(shapes, lambda: self._make(shapes))
        except OutOfMemory as error:
            raise with_a_way_out(error) from None
        self._inputs = [(size.places[name], buffers[name]) for name in self.inputs]
        self._outputs = []
        for name in self.outputs:
            place, array = size.places[name], buffers[name]
            if only is None or name not in only:
                self._outputs.append((place, array))
                continue
            nbytes = place.nbytes // len(array)
            for entry in only[name]:
                source = part(place, entry * nbytes, nbytes)
                self._outputs.append((source, array[entry : entry + 1]))
        self._bound = size

    def enqueue(self, stream: int | None = None) -> None:
        """Run once; returns when the outputs are written."""
        if stream is not None:
            raise BadInput(f"{self._graph}: reads and writes the host's arrays; pass None")
        if self._bound is None:
            raise BadInput(f"{self._graph}: no arrays are bound; call bind first")
        with translated(self._graph):
            self._sent.send(self._stream, self._inputs)
            self._bound.engine.enqueue(self._stream)
            found = self._fetched.fetch(self._stream, [source for source, _ in self._outputs])
        for (_, array), raw in zip(self._outputs, found, strict=True):
            array[...] = raw.view(array.dtype).reshape(array.shape)

    def close(self) -> None:
        """Give back the engines and their buffers."""
        if self._closed:
            return
        self._closed = True
        self._bound, self._inputs, self._outputs = None, [], []
        with translated(self._graph):
            self._stream.synchronize()
            self._sizes.close()
            self._engine.close()
            self._sent.close()
            self._fetched.close()
            self._stream.close()

    def _make(self, shapes: Shapes) -> "_Size":
        specs = {**self.inputs, **self.outputs}
        size = _Size(self._opened(), Arrays(self._device))
        try:
            layout = {name: (shape, specs[name].dtype) for name, shape in shapes}
            (size.places,) = size.arrays.make(self._graph, layout)
            size.engine.bind(size.places)
        except BaseException:
            size.close()
            raise
        return size


class _Size:
    """An engine bound to arrays of one size."""

    def __init__(self, engine: DeviceEngine, arrays: Arrays) -> None:
        self.engine, self.arrays = CapturedEngine(engine), arrays
        self.places: Mapping[str, DeviceArray] = {}

    def close(self) -> None:
        self.engine.close()
        self.arrays.close()

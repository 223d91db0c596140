"""A device engine that reads and writes the host's arrays: text encoders and the VAE run so."""

from collections.abc import Mapping

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.memory import Arrays, Pinned
from diffusion_rt.engines.device.protocol import DeviceArray, DeviceEngine
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.protocol import Buffers
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.kernels.driver import Device


class Staged:
    """Copies inputs through pinned memory to the device, runs there, and copies outputs back."""

    def __init__(self, graph: str, engine: DeviceEngine, device: Device) -> None:
        """Take `engine` over: `close` closes it. All work is on a stream of its own."""
        self._graph = graph
        self._engine = engine
        with translated(graph):
            self._stream = device.stream()
        self._sent, self._fetched = Pinned(device), Pinned(device)
        self._arrays = Arrays(device)
        self._places: dict[str, DeviceArray] = {}
        self._buffers: Buffers | None = None
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph reads."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph writes."""
        return self._engine.outputs

    def bind(self, buffers: Buffers) -> None:
        """Check and keep the arrays; device memory is taken anew where their shapes change."""
        if self._closed:
            raise BadInput(f"{self._graph}: the engine is closed; load it again")
        check_buffers(self._graph, self.inputs, self.outputs, buffers)
        shapes = {name: array.shape for name, array in buffers.items()}
        if shapes != {name: place.shape for name, place in self._places.items()}:
            self._buffers = None
            self._places = {}
            try:
                with translated(self._graph):
                    self._places = self._bind(shapes)
            except OutOfMemory as error:
                raise OutOfMemory(
                    f"{error}; end what else uses the GPU (nvidia-smi), ask for a smaller size, or "
                    "take --engine ort"
                ) from None
        self._buffers = dict(buffers)

    def _bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, DeviceArray]:
        self._stream.synchronize()
        self._arrays.close()
        specs = {**self.inputs, **self.outputs}
        layout = {name: (shapes[name], spec.dtype) for name, spec in specs.items()}
        (places,) = self._arrays.make(self._graph, layout)
        self._engine.bind(places)
        return places

    def enqueue(self, stream: int | None = None) -> None:
        """Run once; returns when the outputs are written."""
        if stream is not None:
            raise BadInput(f"{self._graph}: reads and writes the host's arrays; pass None")
        if self._buffers is None:
            raise BadInput(f"{self._graph}: no arrays are bound; call bind first")
        places, buffers = self._places, self._buffers
        with translated(self._graph):
            inputs = [(places[name], buffers[name]) for name in self.inputs]
            self._sent.send(self._stream, inputs)
            self._engine.enqueue(self._stream)
            found = self._fetched.fetch(self._stream, [places[name] for name in self.outputs])
        for name, raw in zip(self.outputs, found, strict=True):
            array = buffers[name]
            array[...] = raw.view(array.dtype).reshape(array.shape)

    def close(self) -> None:
        """Give back the engine and its buffers."""
        if self._closed:
            return
        self._closed = True
        self._buffers = None
        with translated(self._graph):
            self._stream.synchronize()
            self._engine.close()
            self._arrays.close()
            self._sent.close()
            self._fetched.close()
            self._stream.close()

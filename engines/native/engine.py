"""One graph of the native engine, bound to arrays of one size: a list of launches."""

from collections.abc import Mapping
from typing import Protocol

from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.arena import Arena
from diffusion_rt.engines.native.executor import Addresses, Program
from diffusion_rt.engines.native.plan import Plan
from diffusion_rt.engines.native.ways import Call, Enqueue, LibraryCall
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.kernels.driver import OutOfMemory
from diffusion_rt.kernels.driver.interface import Stream

Signature = Mapping[str, TensorSpec]


class Loaded(Protocol):
    """What the engines of one graph share."""

    @property
    def graph(self) -> str: ...

    @property
    def inputs(self) -> Signature: ...

    @property
    def outputs(self) -> Signature: ...

    @property
    def arena(self) -> Arena: ...

    def program(self, sizes: Mapping[str, int]) -> Program:
        """The plan for a size, its ways chosen; weights and arena are there for it."""
        ...

    def address(self, weight: str) -> int:
        """Where a weight lies."""
        ...

    def ready(self, call: Call | LibraryCall) -> Enqueue:
        """A call with its kernel loaded."""
        ...

    def left_by(self, engine: "NativeEngine") -> None:
        """An engine was closed."""
        ...


class NativeEngine:
    """A `DeviceEngine`: its weights and its arena are those of all engines beside it."""

    def __init__(self, loaded: Loaded) -> None:
        """Bound to nothing yet."""
        self._loaded = loaded
        self._program: Program | None = None
        self._bound: Mapping[str, int] = {}
        self._calls: list[Enqueue] = []
        self._resolved = -1  # the arena's generation that `_calls` are for
        self._stream: Stream | None = None
        self._closed = False

    @property
    def inputs(self) -> Signature:
        """What the graph reads, by name."""
        return self._loaded.inputs

    @property
    def outputs(self) -> Signature:
        """What the graph writes, by name."""
        return self._loaded.outputs

    @property
    def graph(self) -> str:
        """Which graph it is."""
        return self._loaded.graph

    @property
    def generation(self) -> int:
        """Changes when the arena has moved."""
        return self._loaded.arena.generation

    @property
    def program(self) -> Program | None:
        """What runs, once bound."""
        return self._program

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """Plan for the sizes of these arrays, and bring what it needs to the device."""
        loaded = self._loaded
        if self._closed:
            raise BadInput(f"{loaded.graph}: the engine is closed; load it again")
        specs = {**loaded.inputs, **loaded.outputs}
        sizes = sizes_of(loaded.graph, specs, buffers)
        self._program = None
        program = loaded.program(sizes)
        check_bound(program.plan, buffers)
        self._bound = {name: buffers[name].address for name in specs}
        self._program = program
        self._resolve()

    def enqueue(self, stream: Stream) -> None:
        """Put every launch on the stream."""
        if self._program is None:
            raise BadInput(f"{self._loaded.graph}: no arrays are bound; call bind first")
        if self._resolved != self.generation:
            self._resolve()
        self._stream = stream
        for call in self._calls:
            call(stream)

    def wait(self) -> None:
        """Until nothing of this engine is under way."""
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Leave the weights to the engines beside it; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._program = None
            self._calls = []
            self._loaded.left_by(self)

    def places(self) -> Addresses:
        """Where everything lies right now; something must be bound."""
        assert self._program is not None, "bind comes first"
        arena = self._loaded.arena
        return self._program.places(
            arena=arena.address,
            counters=arena.counters,
            bound=self._bound,
            weight=self._loaded.address,
        )

    def _resolve(self) -> None:
        program, loaded = self._program, self._loaded
        assert program is not None
        arena = loaded.arena
        if arena.nbytes < program.nbytes:
            raise OutOfMemory("the memory for activations was lost to another size; bind again")
        calls = program.calls(self.places())
        self._calls = [loaded.ready(call) for call in calls]
        self._resolved = arena.generation


def check_bound(plan: Plan, buffers: Mapping[str, DeviceArray]) -> None:
    """BadInput where an array is not what the plan reads or writes there.

    Of an output's sizes those are the plan's own that no input has, such as pixels of a decoder.
    """
    for name in (*plan.inputs, *plan.outputs):
        buffer, array = plan.buffers[name], buffers[name]
        if array.shape != buffer.shape or array.dtype != buffer.dtype:
            raise BadInput(
                f"{plan.graph}: {name}: got {array.dtype} {list(array.shape)}, the graph has "
                f"{buffer.dtype} {list(buffer.shape)}; is the manifest the model's?"
            )


def sizes_of(graph: str, specs: Signature, buffers: Mapping[str, DeviceArray]) -> dict[str, int]:
    """Every symbol's size; BadInput where the arrays are not those of the signature."""
    if specs.keys() != buffers.keys():
        odd = sorted(specs.keys() ^ buffers.keys())[:6]
        raise BadInput(f"{graph}: arrays for other names than it has: {', '.join(odd)}")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        array = buffers[name]
        wanted = f"wants {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        fits = array.dtype == spec.dtype and len(array.shape) == len(spec.shape)
        for size, dimension in zip(array.shape, spec.shape, strict=False):
            known = sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension
            fits = fits and size == known > 0
        if not fits:
            raise BadInput(f"{graph}: {name}: got {array.dtype} {list(array.shape)}, {wanted}")
    return sizes

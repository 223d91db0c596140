"""One graph on TensorRT: a context of its own over weights and scratch that others share."""

from collections.abc import Callable, Mapping

import tensorrt as trt

from diffusion_rt.engines.binding import check_shape
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.plan_file import PlanHeader
from diffusion_rt.engines.trt.scratch import Scratch
from diffusion_rt.kernels.driver.interface import Stream


class Loaded:
    """A plan on the device, and how many engines use it."""

    def __init__(self, engine: trt.ICudaEngine, header: PlanHeader) -> None:
        """Used by none yet."""
        self.engine = engine
        self.header = header
        self.users = 0


class TrtEngine:
    """A `DeviceEngine`: one execution context, made when first bound."""

    def __init__(
        self,
        loaded: Loaded,
        scratch: Scratch,
        stream: Stream,
        messages: Messages,
        *,
        outside: Callable[[Mapping[str, int]], BadInput],
        closed: Callable[["TrtEngine"], None],
    ) -> None:
        """`stream` is for changes of profile; `outside` is the error for sizes of no profile.

        `closed` hears once of this engine, when it is closed.
        """
        header = loaded.header
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in header.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in header.outputs}
        self.graph = header.key.graph
        self._loaded: Loaded | None = loaded
        self._scratch, self._stream, self._messages = scratch, stream, messages
        self._outside, self._closed = outside, closed
        self._context: trt.IExecutionContext | None = None
        self._bound = False
        self._given = -1  # the generation of scratch memory that the context was given

    @property
    def generation(self) -> int:
        """Counts how often the scratch memory moved."""
        return self._scratch.generation

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """Choose the profile for these shapes, and fix shapes and addresses."""
        if self._loaded is None:
            raise BadInput(f"{self.graph}: the engine is closed; load it again")
        sizes = self._check(buffers)
        profiles = self._loaded.header.key.profiles
        fitting = [index for index, profile in enumerate(profiles) if profile.holds(sizes)]
        if not fitting:
            raise self._outside(sizes)
        self._messages.forget()
        self._bound = False
        handle = self._stream.handle  # asked first: it makes the device's context this thread's
        context = self._context or self._make(self._loaded.engine)
        self._context = context
        if context.active_optimization_profile not in fitting:
            self._expect(context.set_optimization_profile_async(fitting[0], handle), "a profile")
            self._stream.synchronize()
        for name in self.inputs:
            shape = trt.Dims(buffers[name].shape)
            self._expect(context.set_input_shape(name, shape), f"the shape of {name}")
        if missing := context.infer_shapes():
            raise Fault(f"{self.graph}: TensorRT wants more than the shapes of {missing}")
        for name in self.outputs:
            dims = context.get_tensor_shape(name)  # without __iter__
            made = tuple(dims[axis] for axis in range(len(dims)))
            self._check_output(name, buffers[name].shape, made)
        for name, array in buffers.items():
            self._expect(context.set_tensor_address(name, array.address), f"memory for {name}")
        self._scratch.reserve(self._needed(context), self.graph)
        self._given = -1  # the partition was made anew: memory is given again, even if it stayed
        self._bound = True

    def enqueue(self, stream: Stream) -> None:
        """Put one run on the stream."""
        if self._context is None or not self._bound:
            raise BadInput(f"{self.graph}: no arrays are bound; call bind first")
        self._messages.forget()
        if self._given != self._scratch.generation:
            self._context.set_device_memory(self._scratch.address, self._scratch.nbytes)
            self._given = self._scratch.generation
        self._expect(self._context.execute_async_v3(stream.handle), "to run")

    def close(self) -> None:
        """Give back the context."""
        if self._loaded is not None:
            self._context = self._loaded = None
            self._bound = False
            self._closed(self)

    def _make(self, engine: trt.ICudaEngine) -> trt.IExecutionContext:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            raise self._messages.failure(f"{self.graph}: TensorRT makes no context")
        return context

    def _needed(self, context: trt.IExecutionContext) -> int:
        """Scratch memory for the shapes that were set.

        Where TensorRT says 0 it may have failed, perhaps without a word: then it gets the most that
        the profile can need.
        """
        assert self._loaded is not None
        self._messages.forget()
        needed: int = context.update_device_memory_size_for_shapes()
        if not needed:
            if self._messages.failed:
                raise self._messages.failure(f"{self.graph}: TensorRT does not say what it needs")
            profile = context.active_optimization_profile
            needed = self._loaded.engine.get_device_memory_size_for_profile_v2(profile)
        return needed

    def _check(self, buffers: Mapping[str, DeviceArray]) -> dict[str, int]:
        """The size of every symbol; BadInput where names, types or shapes are not the graph's."""
        specs = {**self.inputs, **self.outputs}
        if specs.keys() != buffers.keys():
            wrong = ", ".join(sorted(specs.keys() ^ buffers.keys()))
            raise BadInput(f"{self.graph}: arrays missing or unknown: {wrong}")
        sizes: dict[str, tuple[int, str]] = {}
        for name, spec in specs.items():
            if buffers[name].dtype != spec.dtype:
                raise BadInput(f"{self.graph}: {name}: got {buffers[name].dtype}, wants {spec}")
            check_shape(self.graph, spec, buffers[name].shape, sizes)
        return {symbol: size for symbol, (size, _) in sizes.items()}

    def _check_output(self, name: str, got: tuple[int, ...], made: tuple[int, ...]) -> None:
        """BadInput where an array is not of the shape that is written; -1 is one not known yet."""
        if len(got) != len(made) or any(b not in (a, -1) for a, b in zip(got, made, strict=True)):
            raise BadInput(
                f"{self.graph}: {name}: got shape {list(got)}, the engine writes {list(made)}; is "
                "the manifest the model's?"
            )

    def _expect(self, taken: bool, what: str) -> None:
        if not taken:
            raise self._messages.failure(f"{self.graph}: TensorRT refuses {what}")

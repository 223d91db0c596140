"""Plans that run: the runtime, engines, and execution contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.queue import Work
from support.simulated_tensorrt.enums import (
    DataType,
    EngineStat,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    Severity,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from support.simulated_tensorrt.plan import (
    NUMPY,
    VERSION,
    Arithmetic,
    End,
    Facts,
    Shape,
    pack,
    scratch_bytes,
    unpack,
)
from support.simulated_tensorrt.rules import Broken, device
from support.simulated_tensorrt.values import Dims, IHostMemory, ILogger, logger_of

ALIGNMENT = 256


class Runtime:
    """Opens plans."""

    def __init__(self, logger: ILogger) -> None:
        self._device = device()
        self._logger = logger_of(logger)
        self.engine_host_code_allowed = False
        self.max_threads = 1

    @property
    def logger(self) -> ILogger:
        return self._logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        found = unpack(bytes(memoryview(serialized_engine)))
        trouble = "no plan of TensorRT" if found is None else self._foreign(found[0])
        if found is None or trouble is not None:
            self._logger._say(Severity.ERROR, str(trouble))
            return None
        return ICudaEngine._of(self._device, self._logger, *found)

    def _foreign(self, facts: Facts) -> str | None:
        compatible = "VERSION_COMPATIBLE" in facts.flags
        if facts.version != VERSION and not compatible:
            return f"the plan is of version {facts.version}, this is {VERSION}"
        if compatible and not self.engine_host_code_allowed:
            return "a version compatible plan holds host code, and that is not allowed"
        if facts.arch == self._device.arch:
            return None
        if facts.hardware == "AMPERE_PLUS" and self._device.arch >= 80:
            return None
        return f"the plan is for sm_{facts.arch}, the device is sm_{self._device.arch}"


class ICudaEngine:
    """A plan on a device."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, on: Simulator, logger: ILogger, facts: Facts, model: bytes) -> "ICudaEngine":
        engine = cls.__new__(cls)
        engine._device, engine._logger = on, logger
        engine._facts, engine._model = facts, model
        engine._missing = set(facts.weights) if "STRIP_PLAN" in facts.flags else set()
        engine._arithmetic = None
        engine._contexts, engine._made = 0, {}
        return engine

    _device: Simulator
    _logger: ILogger
    _facts: Facts
    _model: bytes
    _missing: set[str]
    _arithmetic: Arithmetic | None
    _contexts: int
    _made: dict[tuple[tuple[str, Shape], ...], Mapping[str, Shape]]

    @property
    def name(self) -> str:
        return self._facts.name

    @property
    def num_io_tensors(self) -> int:
        return len(self._facts.inputs) + len(self._facts.outputs)

    @property
    def num_layers(self) -> int:
        return self._facts.layers

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._facts.profiles)

    @property
    def num_aux_streams(self) -> int:
        return 0

    @property
    def refittable(self) -> bool:
        return bool(self._facts.weights)

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        return HardwareCompatibilityLevel[self._facts.hardware]

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self._profiles)))

    @property
    def _profiles(self) -> int:
        return len(self._facts.profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        profile = self._facts.profiles[profile_index]
        shapes = {
            end.name: profile.get(end.name, (end.shape,) * 3)[2] for end in self._facts.inputs
        }
        return scratch_bytes(self._facts, shapes)

    def get_engine_stat(self, stat: EngineStat = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        if stat is EngineStat.STRIPPED_WEIGHTS_SIZE:
            stored = [self._facts.weights[name] for name in self._missing]
            return sum(each.count * DataType[each.dtype].itemsize for each in stored)
        return len(self._model)

    def get_tensor_name(self, index: int) -> str:
        return [end.name for end in (*self._facts.inputs, *self._facts.outputs)][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if self._input(name) is not None:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if self._end(name) else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._known(name).dtype]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._known(name).shape)

    def _output_shapes(self, shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """What a run on zeros of these shapes gives, kept."""
        key = tuple(sorted(shapes.items()))
        if key not in self._made:
            ends = self._facts.inputs
            feeds = {end.name: np.zeros(shapes[end.name], NUMPY[end.dtype]) for end in ends}
            outputs = self._compute()(feeds)
            self._made[key] = {name: values.shape for name, values in outputs.items()}
        return self._made[key]

    def get_tensor_location(self, name: str) -> TensorLocation:
        self._known(name)
        return TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> TensorFormat:
        self._known(name)
        return TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        end = self._input(name)
        if end is None:
            raise RuntimeError(f"{name} is no input")
        shapes = self._facts.profiles[profile_index].get(name, (end.shape,) * 3)
        return [Dims(shape) for shape in shapes]

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> "IExecutionContext | None":
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Broken("a context with memory of its own: contexts share their scratch here")
        if self._missing:
            self._logger._say(Severity.ERROR, f"{len(self._missing)} weights are missing")
            return None
        context = IExecutionContext._of(self, 0 if self._contexts == 0 else -1)
        self._contexts += 1
        return context

    def serialize(self) -> IHostMemory:
        return IHostMemory(pack(self._facts, self._model))

    def _end(self, name: str) -> End | None:
        ends = (*self._facts.inputs, *self._facts.outputs)
        return next((end for end in ends if end.name == name), None)

    def _input(self, name: str) -> End | None:
        return next((end for end in self._facts.inputs if end.name == name), None)

    def _known(self, name: str) -> End:
        end = self._end(name)
        if end is None:
            raise RuntimeError(f"{name} is neither input nor output")
        return end

    def _compute(self) -> Arithmetic:
        if self._arithmetic is None:
            self._arithmetic = Arithmetic(self._model)
        return self._arithmetic


@dataclass
class _State:
    """What of a context outlives it, in work that is queued or captured."""

    alive: bool = True
    switched: bool = True  # whether the device has got to the last switch of profiles


@dataclass(frozen=True)
class _Enqueued:
    """One run, with what was set when it was enqueued."""

    state: _State
    engine: ICudaEngine
    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]
    scratch: tuple[int, int]

    def __call__(self) -> None:
        if not self.state.alive:
            raise Broken("work of a context that was destroyed")
        if not self.state.switched:
            raise Broken("a run before the switch of profiles on another stream was waited for")
        space, engine = self.engine._device.space, self.engine
        address, nbytes = self.scratch
        if nbytes:
            space.view(address, nbytes)[:] = 0xA5
        feeds = {}
        for end in engine._facts.inputs:
            shape, dtype = self.shapes[end.name], NUMPY[end.dtype]
            size = int(np.prod(shape)) * dtype.itemsize
            space.find(self.addresses[end.name], size, end.name)
            raw = space.view(self.addresses[end.name], size)
            feeds[end.name] = raw.view(dtype).reshape(shape).copy()
        for name, values in engine._compute()(feeds).items():
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            space.find(self.addresses[name], raw.size, name)
            space.view(self.addresses[name], raw.size)[:] = raw


class IExecutionContext:
    """An engine with shapes, addresses and scratch."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, engine: ICudaEngine, profile: int) -> "IExecutionContext":
        context = cls.__new__(cls)
        context._engine, context._profile = engine, profile
        context._state = _State()
        context._shapes, context._addresses = {}, {}
        context._memory = (0, 0)
        context._warm = context._parted = False
        context.enqueue_emits_profile = True
        context.name = ""
        return context

    enqueue_emits_profile: bool
    name: str
    _engine: ICudaEngine
    _profile: int
    _state: _State
    _shapes: dict[str, Shape]
    _addresses: dict[str, int]
    _memory: tuple[int, int]
    _warm: bool
    _parted: bool  # whether memory was given for the partition there is

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            self._state.alive = False

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"no profile {profile_index}")
        stream = self._stream(stream_handle)
        state = self._state
        state.switched = False

        def switch() -> None:
            state.switched = True

        stream.submit(Work("switch of profiles", "memcpy", switch, ()))
        self._profile = profile_index
        self._shapes.clear()
        self._warm = False
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        end = self._engine._input(name)
        if end is None:
            return self._refuse(f"{name} is no input")
        if self._profile < 0:
            return self._refuse("no profile is set")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        sizes = tuple(int(size) for size in shape)
        if len(sizes) != len(low) or any(
            not a <= size <= b for a, size, b in zip(low, sizes, high, strict=True)
        ):
            return self._refuse(f"{name} of {sizes} is not within {tuple(low)} to {tuple(high)}")
        if self._shapes.get(name) != sizes:
            self._warm = False
        self._shapes[name] = sizes
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        end = self._engine._known(name)
        symbols: dict[str, int] = {}
        for known in self._engine._facts.inputs:
            if known.name in self._shapes:
                symbols |= zip(known.symbols, self._shapes[known.name], strict=True)
        ends = zip(end.shape, end.symbols, strict=True)
        sizes = [symbols.get(symbol, -1) if size == -1 else size for size, symbol in ends]
        if -1 in sizes and not self.infer_shapes():  # of an output, by the graph's arithmetic
            sizes = list(self._engine._output_shapes(self._all_shapes())[name])
        return Dims(sizes)

    def infer_shapes(self) -> list[str]:
        dynamic = [end.name for end in self._engine._facts.inputs if -1 in end.shape]
        return [name for name in dynamic if name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._engine._end(name) is None:
            return self._refuse(f"{name} is neither input nor output")
        if memory % ALIGNMENT:
            return self._refuse(f"{name} at {memory:#x} is not aligned to {ALIGNMENT} bytes")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        self._engine._known(name)
        return self._addresses.get(name, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT:
            raise Broken(f"scratch memory at {memory:#x} is not aligned to {ALIGNMENT} bytes")
        self._memory = (int(memory), int(size))
        self._warm, self._parted = False, True

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes() or self._profile < 0:
            raise Broken("the memory for shapes is asked for before all shapes are set")
        self._parted = False  # it is divided anew, and given after that in every example there is
        return scratch_bytes(self._engine._facts, self._all_shapes())

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        if self._profile < 0:
            return self._refuse("no profile is set")
        if missing := self.infer_shapes():
            return self._refuse(f"no shape is set for {', '.join(missing)}")
        names = [end.name for end in (*engine._facts.inputs, *engine._facts.outputs)]
        if missing := [name for name in names if not self._addresses.get(name)]:
            return self._refuse(f"no address is set for {', '.join(missing)}")
        if engine._missing:
            return self._refuse(f"{len(engine._missing)} weights are missing")
        needed = scratch_bytes(engine._facts, self._all_shapes())
        address, size = self._memory
        if size < needed or not address:
            raise Broken(f"scratch memory of {size} bytes where {needed} are needed")
        if not self._parted:
            raise Broken("scratch memory was not given since it was divided anew")
        stream = self._stream(stream_handle)
        if stream.capturing is not None and not self._warm:
            raise Broken("captured before one run with these shapes and this memory")
        self._warm = True
        work = _Enqueued(
            state=self._state,
            engine=engine,
            shapes=self._all_shapes(),
            addresses=dict(self._addresses),
            scratch=(address, needed),
        )
        find = engine._device.space.find
        touches = [find(place, 1, name) for name, place in self._addresses.items()]
        if needed:
            touches.append(find(address, size, "scratch memory"))
        stream.submit(Work(engine.name or "engine", "engine", work, tuple(touches)))
        return True

    def _all_shapes(self) -> dict[str, Shape]:
        return {
            end.name: self._shapes.get(end.name, end.shape) for end in self._engine._facts.inputs
        }

    def _stream(self, handle: int) -> Any:
        if not handle:
            raise Broken("the default stream makes TensorRT wait for the whole device")
        try:
            return self._engine._device.stream_of(handle)
        except Misuse as error:
            raise Broken(str(error)) from None

    def _refuse(self, text: str) -> bool:
        self._engine._logger._say(Severity.ERROR, text)
        return False

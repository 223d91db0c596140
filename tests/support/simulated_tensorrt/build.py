"""Networks, profiles, the builder and its settings."""

import ctypes
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from support.simulated_tensorrt.enums import (
    BuilderFlag,
    DataType,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    PreviewFeature,
    ProfilingVerbosity,
    RuntimePlatform,
    Severity,
    TilingOptimizationLevel,
)
from support.simulated_tensorrt.layers import ILayer, Numbers
from support.simulated_tensorrt.plan import VERSION, Facts, Shape, Stored, ends_of, pack
from support.simulated_tensorrt.plugin import Use, check
from support.simulated_tensorrt.rules import Broken, call_back, device
from support.simulated_tensorrt.values import (
    Dims,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    Weights,
    logger_of,
)

_CACHE = b"a timing cache of the simulated TensorRT\n"
_KNOBS = ("-conv_use_long_w", "-kgen:codegen:cuda_tile")


@dataclass
class _Build:
    """One build, for tests to look at."""

    config: "IBuilderConfig"
    network: "INetworkDefinition"
    timed: int  # layers whose timing was not in the cache


BUILDS: list[_Build] = []
"""Every build of this process, the latest last."""


def LISTED(numbers: Numbers) -> bool:
    """Whether refitting knows some numbers, and stripping takes them away: all, unless replaced.

    Nothing documented says which of them TensorRT leaves alone.
    """
    return True


class ITensor:
    """An input or output of a network."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, name: str, dtype: DataType, shape: Shape) -> "ITensor":
        tensor = cls.__new__(cls)
        tensor.name, tensor.dtype, tensor.shape = name, dtype, Dims(shape)
        return tensor

    name: str
    dtype: DataType
    shape: Dims


class INetworkDefinition:
    """What is to be built."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _new(cls, builder: "Builder", flags: int) -> "INetworkDefinition":
        network = cls.__new__(cls)
        network.name = ""
        network._builder, network._flags = builder, flags
        network._model, network._given, network._parser = None, {}, None
        network._uses, network._numbers = [], []
        return network

    name: str
    _builder: "Builder"
    _flags: int
    _model: Any
    _given: dict[str, tuple[int, int, str]]
    _parser: Any
    _uses: list[Use]
    _numbers: list[Numbers]

    @property
    def builder(self) -> "Builder":
        return self._builder

    @property
    def flags(self) -> int:
        return self._flags

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        return bool(self._flags & 1 << int(flag))

    @property
    def num_layers(self) -> int:
        return len(self._layers())

    @property
    def num_inputs(self) -> int:
        return len(self._ends("input"))

    @property
    def num_outputs(self) -> int:
        return len(self._ends("output"))

    def get_input(self, index: int) -> ITensor:
        return self._ends("input")[index]

    def get_output(self, index: int) -> ITensor:
        return self._ends("output")[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers()[index]

    def set_weights_name(self, weights: Weights, name: str) -> bool:
        """As documented: for all numbers at that address, if no others have the name."""
        here = [n for n in self._numbers if n.weights._address == weights._address]
        fits = here and all(
            (n.weights.dtype, n.weights.size) == (weights.dtype, weights.size) for n in here
        )
        if not fits or any(n.name == name for n in self._numbers if n not in here):
            self._builder.logger._say(Severity.ERROR, f"the name {name} is rejected")
            return False
        for numbers in here:
            numbers.name = name
        return True

    def _layers(self) -> list[ILayer]:
        if self._model is None:
            return []
        constants = [n for n in self._numbers if n.constant]
        made = [
            ILayer._of(n.tensor or f"(Unnamed Layer* {index}) [Constant]", n)
            for index, n in enumerate(constants)
        ]
        return [*made, *(ILayer._of(node.name) for node in self._model.graph.node)]

    def _ends(self, kind: str) -> list[ITensor]:
        if self._model is None:
            return []
        found = ends_of(getattr(self._model.graph, kind))
        return [ITensor._of(end.name, DataType[end.dtype], end.shape) for end in found]

    def _take(
        self,
        model: Any,
        given: Mapping[str, tuple[int, int, str]],
        parser: Any,
        uses: Sequence[Use],
        numbers: Sequence[Numbers],
    ) -> None:
        self._model, self._given, self._parser = model, dict(given), parser
        self._uses, self._numbers = list(uses), list(numbers)


class IOptimizationProfile:
    """Smallest, best and largest shapes of inputs."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _new(cls) -> "IOptimizationProfile":
        profile = cls.__new__(cls)
        profile._shapes = {}
        profile.extra_memory_target = 1.0
        return profile

    extra_memory_target: float
    _shapes: dict[str, tuple[Shape, Shape, Shape]]

    def set_shape(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None:
        low, middle, high = Dims(min), Dims(opt), Dims(max)
        sizes = list(zip(low, middle, high, strict=False))
        if len(low) != len(middle) or len(middle) != len(high):
            raise ValueError(f"{input}: shapes of different ranks")
        if any(not 0 <= a <= b <= c for a, b, c in sizes):
            raise ValueError(f"{input}: min <= opt <= max does not hold")
        self._shapes[input] = (tuple(low), tuple(middle), tuple(high))

    def get_shape(self, input: str) -> list[Dims]:
        return [Dims(shape) for shape in self._shapes.get(input, ())]

    def __bool__(self) -> bool:
        return bool(self._shapes)


class ITimingCache:
    """What earlier builds measured."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, arch: int, known: Sequence[str]) -> "ITimingCache":
        cache = cls.__new__(cls)
        cache._arch, cache._known = arch, set(known)
        return cache

    _arch: int
    _known: set[str]

    def serialize(self) -> IHostMemory:
        body = json.dumps({"arch": self._arch, "known": sorted(self._known)}).encode()
        return IHostMemory(_CACHE + hashlib.sha256(body).digest() + body)

    def combine(self, input_cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        if input_cache._arch != self._arch and not ignore_mismatch:
            return False
        self._known |= input_cache._known
        return True

    def reset(self) -> bool:
        self._known.clear()
        return True


@dataclass(eq=False)
class IBuilderConfig:
    """Settings of a build."""

    _logger: ILogger
    builder_optimization_level: int = 3
    tiling_optimization_level: TilingOptimizationLevel = TilingOptimizationLevel.NONE
    l2_limit_for_tiling: int = 0
    max_aux_streams: int = -1
    max_num_tactics: int = -1
    avg_timing_iterations: int = 1
    hardware_compatibility_level: HardwareCompatibilityLevel = HardwareCompatibilityLevel.NONE
    runtime_platform: RuntimePlatform = RuntimePlatform.SAME_AS_BUILD
    profiling_verbosity: ProfilingVerbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    progress_monitor: IProgressMonitor | None = None
    flags: int = 1 << int(BuilderFlag.TF32)
    profile_stream: int = 0
    _profiles: list[dict[str, tuple[Shape, Shape, Shape]]] = field(default_factory=list)
    _limits: dict[MemoryPoolType, int] = field(default_factory=dict)
    _features: dict[PreviewFeature, bool] = field(default_factory=dict)
    _cache: ITimingCache | None = None
    _route: str = ""

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def all_build_routes(self) -> str:
        return json.dumps({"tuner_version": "1", "tuner_options": [{"option": o} for o in _KNOBS]})

    @property
    def build_route(self) -> str:
        return self._route

    @build_route.setter
    def build_route(self, value: str) -> None:
        unknown = [knob for knob in value.split() if knob.split("=")[0] not in _KNOBS]
        if unknown:  # said in the log alone: the setter returns nothing
            self._logger._say(Severity.ERROR, f"unknown build route {unknown[0]}")
        else:
            self._route = value

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile:
            return -1
        self._profiles.append(dict(profile._shapes))
        return len(self._profiles) - 1

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: BuilderFlag) -> bool:
        return bool(self.flags & 1 << int(flag))

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        if pool_size < 0:
            raise ValueError(f"{pool.name}: a limit of {pool_size} bytes")
        self._limits[pool] = int(pool_size)

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._limits.get(pool, device().memory().total)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        self._features[feature] = enable

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        return self._features.get(feature, False)

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        content = bytes(memoryview(serialized_timing_cache))
        if not content:
            return ITimingCache._of(device().arch, [])
        body = content[len(_CACHE) + 32 :]
        if not content.startswith(_CACHE + hashlib.sha256(body).digest()):
            self._logger._say(Severity.ERROR, "the timing cache cannot be read")
            return None
        found = json.loads(body)
        return ITimingCache._of(found["arch"], found["known"])

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._arch != device().arch and not ignore_mismatch:
            self._logger._say(Severity.ERROR, "the timing cache is of another device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    """Makes plans of networks."""

    def __init__(self, logger: ILogger) -> None:
        device()
        self._logger = logger_of(logger)
        self.max_threads = 1

    @property
    def logger(self) -> ILogger:
        return self._logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition._new(self, int(flags))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile._new()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        trouble = _trouble(network, config)
        if trouble is not None:
            self._logger._say(Severity.ERROR, trouble)
            return None
        for name, (address, size, sha256) in network._given.items():
            if hashlib.sha256(ctypes.string_at(address, size)).hexdigest() != sha256:
                raise Broken(f"the bytes of {name} changed before the build was over")
        for profile in config._profiles:
            for which in range(3):  # the smallest shapes, the best, the largest
                sizes = {name: shapes[which] for name, shapes in profile.items()}
                check(network._uses, network._model, sizes)
        timed = self._time(network, config)
        if timed is None:
            self._logger._say(Severity.ERROR, "the build was cancelled")
            return None
        BUILDS.append(_Build(config, network, timed))
        return IHostMemory(_plan(network, config))

    def _time(self, network: INetworkDefinition, config: IBuilderConfig) -> int | None:
        """Go through the layers; how many were not in the cache, None where it was cancelled."""
        monitor = config.progress_monitor
        if monitor is not None and not hasattr(monitor, "_made"):
            raise TypeError("IProgressMonitor.__init__() must be called when overriding __init__")
        cache = config._cache or ITimingCache._of(device().arch, [])
        nodes, timed, go_on = network._model.graph.node, 0, True
        if monitor is not None:
            call_back("phase_start", monitor.phase_start, "Building Engine", None, 2)
            call_back("phase_start", monitor.phase_start, "Timing", "Building Engine", len(nodes))
        for index, node in enumerate(nodes):
            key = f"{node.op_type} {len(node.input)} {config.builder_optimization_level}"
            timed += key not in cache._known
            cache._known.add(key)
            if monitor is not None:
                answer = call_back("step_complete", monitor.step_complete, "Timing", index)
                if not isinstance(answer, bool):
                    raise Broken(f"step_complete returned {answer!r}")
                if not answer:
                    go_on = False
                    break
        if monitor is not None:
            call_back("phase_finish", monitor.phase_finish, "Timing")
            for step in range(2 if go_on else 0):
                answer = call_back("step_complete", monitor.step_complete, "Building Engine", step)
                go_on = go_on and answer
            call_back("phase_finish", monitor.phase_finish, "Building Engine")
        return timed if go_on else None


def _trouble(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    """Why a network cannot be built, as the log says it."""
    if network._model is None:
        return "the network is empty"
    if config.get_flag(BuilderFlag.REFIT) and config.get_flag(BuilderFlag.REFIT_IDENTICAL):
        return "REFIT and REFIT_IDENTICAL exclude each other"
    ends = ends_of(network._model.graph.input)
    if any(-1 in end.shape for end in ends) and not config._profiles:
        return "dynamic inputs without an optimization profile"
    for index, profile in enumerate(config._profiles):
        for end in ends:
            if end.name not in profile:
                if -1 in end.shape:
                    return f"profile {index} has no shapes for {end.name}"
                continue
            for shape in profile[end.name]:
                fits = len(shape) == len(end.shape) and all(
                    size in (-1, wanted) for size, wanted in zip(end.shape, shape, strict=True)
                )
                if not fits:
                    return f"profile {index}: {end.name} of {shape}, the network has {end.shape}"
        if unknown := profile.keys() - {end.name for end in ends}:
            return f"profile {index}: no input {sorted(unknown)[0]}"
    return None


def _plan(network: INetworkDefinition, config: IBuilderConfig) -> bytes:
    model = onnx.ModelProto()
    model.CopyFrom(network._model)
    flags = [flag.name for flag in BuilderFlag if config.get_flag(flag)]
    stripped = "STRIP_PLAN" in flags
    weights = {}
    if stripped or "REFIT" in flags or "REFIT_IDENTICAL" in flags:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for numbers in filter(LISTED, network._numbers):
            kind, count = numbers.weights.dtype.name, numbers.weights.size
            weights[numbers.name] = Stored(kind, count, numbers.sha256, numbers.tensor)
            if stripped and numbers.tensor:
                tensors[numbers.tensor].ClearField("raw_data")
    facts = Facts(
        version=VERSION,
        arch=device().arch,
        name=network.name,
        inputs=ends_of(model.graph.input),
        outputs=ends_of(model.graph.output),
        profiles=tuple(config._profiles) or ({},),
        flags=tuple(flags),
        hardware=config.hardware_compatibility_level.name,
        weights=weights,
        layers=len(model.graph.node),
    )
    return pack(facts, model.SerializeToString())

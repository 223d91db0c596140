"""The enumerations, with the names and numbers of the real bindings."""

from enum import Enum


class Numbered(Enum):
    """A member is no int, and int() and index() give its number."""

    def __int__(self) -> int:
        number: int = self.value
        return number

    __index__ = __int__


class BuilderFlag(Numbered):
    DEBUG = 2
    GPU_FALLBACK = 3
    REFIT = 4
    DISABLE_TIMING_CACHE = 5
    TF32 = 6
    SPARSE_WEIGHTS = 7
    DIRECT_IO = 11
    VERSION_COMPATIBLE = 12
    EXCLUDE_LEAN_RUNTIME = 13
    ERROR_ON_TIMING_CACHE_MISS = 15
    DISABLE_COMPILATION_CACHE = 17
    STRIP_PLAN = 18
    REFIT_IDENTICAL = 19
    WEIGHT_STREAMING = 20
    REFIT_INDIVIDUAL = 22
    STRICT_NANS = 23
    MONITOR_MEMORY = 24
    EDITABLE_TIMING_CACHE = 26


class DataType(Numbered):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return {"INT64": 8, "FLOAT": 4, "INT32": 4, "HALF": 2, "BF16": 2}.get(self.name, 1)


class EngineStat(Numbered):
    TOTAL_WEIGHTS_SIZE = 0
    STRIPPED_WEIGHTS_SIZE = 1


class ErrorCode(Numbered):
    SUCCESS = 0
    INTERNAL_ERROR = 1
    MEM_ALLOC_FAILED = 2
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_VALUE = 4
    INVALID_GRAPH = 5
    INVALID_NODE = 6
    UNSUPPORTED_GRAPH = 7
    UNSUPPORTED_NODE = 8
    UNSUPPORTED_NODE_ATTR = 9
    UNSUPPORTED_NODE_INPUT = 10
    UNSUPPORTED_NODE_DATATYPE = 11


class ExecutionContextAllocationStrategy(Numbered):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class HardwareCompatibilityLevel(Numbered):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class LayerType(Numbered):
    ELEMENTWISE = 9
    CONSTANT = 19


class MemoryPoolType(Numbered):
    WORKSPACE = 0
    TACTIC_DRAM = 4
    TACTIC_SHARED_MEMORY = 5


class NetworkDefinitionCreationFlag(Numbered):
    STRONGLY_TYPED = 0
    PREFER_JIT_PYTHON_PLUGINS = 1
    PREFER_AOT_PYTHON_PLUGINS = 2


class OnnxParserFlag(Numbered):
    NATIVE_INSTANCENORM = 0
    ENABLE_PLUGIN_OVERRIDE = 3


class PreviewFeature(Numbered):
    ALIASED_PLUGIN_IO_10_03 = 0
    RUNTIME_ACTIVATION_RESIZE_10_10 = 1


class ProfilingVerbosity(Numbered):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class RuntimePlatform(Numbered):
    SAME_AS_BUILD = 0
    WINDOWS_AMD64 = 1


class Severity(Numbered):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class TacticSource(Numbered):
    EDGE_MASK_CONVOLUTIONS = 0
    JIT_CONVOLUTIONS = 1


class TensorFormat(Numbered):
    LINEAR = 0


class TensorIOMode(Numbered):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Numbered):
    DEVICE = 0
    HOST = 1


class TilingOptimizationLevel(Numbered):
    NONE = 0
    FAST = 1
    MODERATE = 2
    FULL = 3

"""A module that stands for `tensorrt`: arithmetic by ONNX Runtime, rules as documented.

What is public here bears the name that the real bindings (11.4) give it and behaves as they say of
it; a call that they answer with False or None and a line in the log is answered so here. What they
call undefined, or let pass and compute nonsense, raises `rules.Broken`. `rules.attach` gives it the
simulated device that it runs on.
"""

from support.simulated_tensorrt.build import (
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    ITensor,
    ITimingCache,
)
from support.simulated_tensorrt.enums import (
    BuilderFlag,
    DataType,
    EngineStat,
    ErrorCode,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParserFlag,
    PreviewFeature,
    ProfilingVerbosity,
    RuntimePlatform,
    TacticSource,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    TilingOptimizationLevel,
)
from support.simulated_tensorrt.layers import IConstantLayer, ILayer
from support.simulated_tensorrt.parser import OnnxParser, ParserError
from support.simulated_tensorrt.plan import VERSION as __version__
from support.simulated_tensorrt.refit import Refitter
from support.simulated_tensorrt.runtime import ICudaEngine, IExecutionContext, Runtime
from support.simulated_tensorrt.values import (
    Dims,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    Logger,
    Weights,
)

float32, float16, bfloat16 = DataType.FLOAT, DataType.HALF, DataType.BF16
int32, int64 = DataType.INT32, DataType.INT64

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "EngineStat",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "IConstantLayer",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "ParserError",
    "PreviewFeature",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "RuntimePlatform",
    "TacticSource",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "TilingOptimizationLevel",
    "Weights",
    "__version__",
    "bfloat16",
    "float16",
    "float32",
    "int32",
    "int64",
]

"""Small types: sizes, weights, memory, and what the user derives from."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.simulated_tensorrt import enums
from support.simulated_tensorrt.enums import DataType
from support.simulated_tensorrt.rules import Broken, call_back

_OF_NUMPY = {
    np.dtype(np.float32): DataType.FLOAT,
    np.dtype(np.float16): DataType.HALF,
    np.dtype(np.int64): DataType.INT64,
    np.dtype(np.int32): DataType.INT32,
}


class Dims(tuple[int, ...]):
    """Sizes of a tensor."""

    MAX_DIMS = 8

    def __new__(cls, shape: Sequence[int] = ()) -> "Dims":
        if len(shape) > cls.MAX_DIMS:
            raise ValueError("too many dimensions")
        return super().__new__(cls, (int(size) for size in shape))


class Weights:
    """Numbers somewhere in memory; no copy is made."""

    def __init__(self, *arguments: Any) -> None:
        self._keep: Any = None
        if len(arguments) == 1 and isinstance(arguments[0], np.ndarray):
            self._keep = arguments[0]
            self._dtype = _OF_NUMPY[self._keep.dtype]
            self._address, self._size = self._keep.ctypes.data, self._keep.size
        elif len(arguments) == 3:
            self._dtype, self._address, self._size = arguments
        elif len(arguments) <= 1:
            self._dtype = arguments[0] if arguments else DataType.FLOAT
            self._address = self._size = 0
        else:
            raise TypeError("__init__(): incompatible constructor arguments")
        if not isinstance(self._dtype, DataType):
            raise TypeError("__init__(): incompatible constructor arguments")

    @classmethod
    def _owned(cls, dtype: DataType, content: bytes) -> "Weights":
        """Numbers in memory that lives as long as this."""
        buffer = ctypes.create_string_buffer(content, max(len(content), 1))
        weights = cls(dtype, ctypes.addressof(buffer), len(content) // dtype.itemsize)
        weights._keep = buffer
        return weights

    @property
    def dtype(self) -> DataType:
        return self._dtype

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def nbytes(self) -> int:
        return self.size * self._dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def _read(self) -> bytes:
        """The bytes as they are now."""
        return ctypes.string_at(self._address, self.nbytes)

    def _memory(self) -> Any:
        """The very bytes, as a buffer."""
        return (ctypes.c_uint8 * self.nbytes).from_address(self._address)


class IHostMemory(bytes):
    """Memory of TensorRT's, which gives its buffer to memoryview."""

    @property
    def nbytes(self) -> int:
        return len(self)

    @property
    def dtype(self) -> DataType:
        return DataType.INT8


class ILogger:
    """To derive from: `log` hears all that TensorRT has to say."""

    Severity = enums.Severity
    INTERNAL_ERROR = enums.Severity.INTERNAL_ERROR
    ERROR = enums.Severity.ERROR
    WARNING = enums.Severity.WARNING
    INFO = enums.Severity.INFO
    VERBOSE = enums.Severity.VERBOSE

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: enums.Severity, msg: str) -> None:
        raise NotImplementedError

    def _say(self, severity: enums.Severity, text: str) -> None:
        if not hasattr(self, "_made"):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        call_back("ILogger.log", self.log, severity, text)


class Logger(ILogger):
    """One that prints."""

    def __init__(self, min_severity: enums.Severity = enums.Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: enums.Severity, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            print(f"[{severity.name}] {msg}")


class IProgressMonitor:
    """To derive from: hears how a build goes on, and may end it."""

    def __init__(self) -> None:
        self._made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


def logger_of(logger: object) -> ILogger:
    """The argument, held to be a logger."""
    if not isinstance(logger, ILogger):
        raise TypeError("incompatible constructor arguments: an ILogger is wanted")
    return logger


def array_at(address: int, count: int, dtype: str) -> NDArray[Any]:
    """A copy of numbers in host memory."""
    if not address:
        raise Broken("numbers at a null pointer")
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).copy()

"""What TensorRT says while it works, kept to explain a failure, and kept off the terminal."""

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import tensorrt as trt

from diffusion_rt.engines.errors import Fault, OutOfMemory

T = TypeVar("T")

KEPT = 30
LENGTH = 300  # characters of one message

# How it says that the device's memory ran out.
_NO_MEMORY = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "memory allocation failed",
    "could not be allocated",
)


class Messages(trt.ILogger):
    """Takes warnings and errors from any thread; the last ones are kept."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.RLock()  # what is freed while it is held may log too
        self._errors: deque[str] = deque(maxlen=KEPT)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            with self._lock:
                self._errors.append(" ".join(msg.split())[:LENGTH])

    def forget(self) -> None:
        """Drop what was said so far."""
        with self._lock:
            self._errors.clear()

    def reason(self) -> str:
        """The first of the errors kept: those after it mostly follow from it."""
        with self._lock:
            return self._errors[0] if self._errors else "it gave no reason"

    def out_of_memory(self) -> bool:
        """Whether one of the errors kept says that the device has no memory left."""
        with self._lock:
            return any(words in error.lower() for error in self._errors for words in _NO_MEMORY)

    @property
    def failed(self) -> bool:
        """Whether any error was said since the last `forget`."""
        return bool(self._errors)

    def failure(self, what: str, way_out: str = "") -> OutOfMemory | Fault:
        """The error for `what` TensorRT did not do: for want of memory, or for its own reason.

        `way_out` is what to do about all but the first.
        """
        said = f"{what}: {self.reason()}"
        if self.out_of_memory():
            return OutOfMemory(said)
        return Fault(f"{said}; {way_out}" if way_out else said)

    def made(self, what: str, make: Callable[[], T]) -> T:
        """What `make` makes; where TensorRT has none, Fault or OutOfMemory about `what`."""
        try:
            return make()
        except TypeError as error:  # how the bindings say that a constructor returned nothing
            if "nullptr" not in str(error):
                raise
            raise self.failure(f"TensorRT's {what} does not start") from None

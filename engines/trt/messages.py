"""What TensorRT says while it works, kept to explain a failure, and kept off the terminal."""

import threading
from collections import deque

import tensorrt as trt

KEPT = 30
LENGTH = 300  # characters of one message

# How it says that the device's memory ran out.
_NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "memory allocation failed")


class Messages(trt.ILogger):
    """Takes warnings and errors from any thread; the last ones are kept."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.Lock()
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

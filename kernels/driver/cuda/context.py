"""The way to the driver: the bindings, one context, and the check of every answer."""

import importlib
from typing import Any

from diffusion_rt.kernels.driver.errors import DeviceError, DeviceLost, NoDriver, classify

LEAST_DRIVER = 12080
"""CUDA 12.8, driver R570: the oldest in which the bindings of CUDA 13 find every call made here.

Cubins of CUDA 13's assembler need 13.0 (R580); from PTX the older ones compile kernels themselves.
"""


def bindings() -> Any:
    """The module `cuda.bindings.driver`; raises NoDriver where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise NoDriver(
            f"cuda-bindings is not installed ({error}); pip install 'diffusion-rt[native]'"
        ) from error


class Context:
    """The primary context of one device, shared with every other library in the process."""

    def __init__(self, ordinal: int) -> None:
        """Start the driver and retain the context; raises NoDriver where there is none."""
        self._lost: DeviceLost | None = None
        self.api = driver = bindings()
        try:
            # Before anything else: without a driver other calls of the bindings fail in worse ways.
            self.check(driver.cuInit(0), "start the NVIDIA driver")
        except RuntimeError as error:
            if isinstance(error, DeviceError):
                raise
            # The bindings' own: libcuda.so.1 is not found, or lacks a function.
            raise NoDriver(
                f"no NVIDIA driver here ({_first_line(error)}); install one, "
                "in a container start it with --gpus all"
            ) from error
        version = int(self.check(driver.cuDriverGetVersion(), "ask the driver's version"))
        if version < LEAST_DRIVER:
            raise NoDriver(
                f"the NVIDIA driver knows CUDA {_dotted(version)}, {_dotted(LEAST_DRIVER)} is "
                "needed; update it to R570, or better R580 or newer"
            )
        self.version = _dotted(version)
        self.device = self.check(driver.cuDeviceGet(ordinal), f"open device {ordinal}")
        self._context = self.check(
            driver.cuDevicePrimaryCtxRetain(self.device), f"open a context on device {ordinal}"
        )

    def enter(self) -> Any:
        """The driver with this context current on the calling thread; raises once it is lost.

        Threads come and go in a server, and other libraries switch contexts, so this is asked
        before every call; it costs about a microsecond.
        """
        if self._lost is not None:
            raise self._lost
        self.check(self.api.cuCtxSetCurrent(self._context), "make the context current")
        return self.api

    def check(self, answer: tuple[Any, ...], what: str) -> Any:
        """The values of a driver's answer: one, a tuple of them, or None; raises DeviceError."""
        code, *values = answer
        if int(code) != 0:
            raise self._error(code, what)
        return values[0] if len(values) == 1 else tuple(values) or None

    def ready(self, answer: tuple[Any, ...], what: str) -> bool:
        """The answer of a query: False for "not ready" alone."""
        if int(answer[0]) == int(self.api.CUresult.CUDA_ERROR_NOT_READY):
            return False
        self.check(answer, what)
        return True

    def quietly(self, answer: tuple[Any, ...]) -> None:
        """Note a lost device, else ignore a failure: for closing, which must go on."""
        if int(answer[0]) != 0:
            self._error(answer[0], "close")

    @property
    def lost(self) -> bool:
        """Whether a sticky error was seen."""
        return self._lost is not None

    def release(self) -> None:
        """Give the context back; the device frees all when the last user has done so."""
        self.quietly(self.api.cuDevicePrimaryCtxRelease(self.device))

    def _error(self, code: Any, what: str) -> DeviceError:
        driver = self.api
        _, name = driver.cuGetErrorName(code)
        _, text = driver.cuGetErrorString(code)
        error = classify(int(code), _text(name) or str(code), _text(text) or "no text", what)
        if isinstance(error, DeviceLost):
            self._lost = error
        return error


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace") if value else ""


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

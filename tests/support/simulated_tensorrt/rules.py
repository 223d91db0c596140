"""What is broken loudly, and the device all of it runs on."""

from collections.abc import Callable
from typing import Any, TypeVar

from diffusion_rt.kernels.driver.simulator import Simulator

Answer = TypeVar("Answer")


class Broken(AssertionError):
    """A rule of TensorRT was broken whose breach it would not report."""


class _Attached:
    device: Simulator | None = None


def attach(device: Simulator | None) -> None:
    """Let everything made from now on run on this device; None takes it away."""
    _Attached.device = device


def device() -> Simulator:
    """The device attached; without one the real bindings fail in this way."""
    if _Attached.device is None:
        raise TypeError("pybind11::init(): factory function returned nullptr")
    return _Attached.device


def call_back(what: str, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call what the user gave; an exception would have to cross TensorRT's own frames."""
    try:
        return function(*arguments)
    except BaseException as error:
        raise Broken(f"{what} raised {error!r}, which nothing catches in TensorRT") from error

"""The device layer: memory, streams, events, captured graphs and launches, real or simulated."""

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import (
    BadImage,
    DeviceError,
    DeviceLost,
    Misuse,
    NoDriver,
    OutOfMemory,
)
from diffusion_rt.kernels.driver.interface import Device, Part, part
from diffusion_rt.kernels.driver.launch import Launch, Limits, limits_of
from diffusion_rt.kernels.driver.tensor_map import TensorMap

__all__ = [
    "BadImage",
    "Device",
    "DeviceError",
    "DeviceLost",
    "Launch",
    "Limits",
    "Misuse",
    "NoDriver",
    "OutOfMemory",
    "Parameter",
    "Part",
    "TensorMap",
    "limits_of",
    "open_device",
    "part",
]


def open_device(ordinal: int = 0) -> Device:
    """The GPU of that number; raises NoDriver where there is none. Loads cuda-python."""
    from diffusion_rt.kernels.driver.cuda.device import CudaDevice

    return CudaDevice(ordinal)

"""What the NVIDIA driver says of itself and its devices, asked without any CUDA package.

Run as a file it prints that as one JSON object; it imports nothing of ours for that.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor
_NAME_BYTES = 256

Load = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as the driver counts them."""

    name: str
    capability: tuple[int, int]
    memory: int  # bytes
    free: int | None  # bytes; None where NVML is missing or cannot tell


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver: its release, the newest CUDA it knows, its devices, and what it complains of."""

    release: str | None  # such as 580.65.06; None without NVML
    cuda: tuple[int, int] | None
    devices: tuple[Device, ...]
    trouble: str | None = None


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def ask_driver(timeout: float = 30.0) -> Driver | None:
    """`read_driver` in a process of its own: a driver that hangs or crashes is told of."""
    command = [sys.executable, "-P", str(Path(__file__).resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, text=True)
    except subprocess.TimeoutExpired:
        return Driver(None, None, (), f"it does not answer within {timeout:g} s")
    if done.returncode:
        return Driver(None, None, (), f"asking it ends with status {done.returncode}")
    found = json.loads(done.stdout)
    if found is None:
        return None
    devices = tuple(
        Device(
            one["name"], (one["capability"][0], one["capability"][1]), one["memory"], one["free"]
        )
        for one in found["devices"]
    )
    cuda = (found["cuda"][0], found["cuda"][1]) if found["cuda"] else None
    return Driver(found["release"], cuda, devices, found["trouble"])


def read_driver(load: Load = ctypes.CDLL) -> Driver | None:
    """The driver of this machine; None where `libcuda.so.1` is not there or does not load."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return None
    nvml = _nvml(load)
    release = _release(nvml)
    status = int(cuda.cuInit(0))
    if status:
        return Driver(release, None, (), f"cuInit answers {status} ({_error_name(cuda, status)})")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices = tuple(_device(cuda, nvml, index) for index in range(count.value))
    return Driver(release, (version.value // 1000, version.value % 1000 // 10), devices)


def _device(cuda: Any, nvml: Any, index: int) -> Device:
    handle, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, _NAME_BYTES, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        capability.append(value.value)
    free = _free(cuda, nvml, handle)
    return Device(
        name.value.decode("utf-8", "replace"), (capability[0], capability[1]), memory.value, free
    )


def _free(cuda: Any, nvml: Any, handle: ctypes.c_int) -> int | None:
    """By bus address: NVML counts all devices, CUDA those that CUDA_VISIBLE_DEVICES leaves."""
    address, device, memory = ctypes.create_string_buffer(64), ctypes.c_void_p(), _Memory()
    if nvml is None or cuda.cuDeviceGetPCIBusId(address, 64, handle):
        return None
    if nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(device)):
        return None
    if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
        return None
    return int(memory.free)


def _nvml(load: Load) -> Any:
    try:
        nvml = load("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml


def _release(nvml: Any) -> str | None:
    text = ctypes.create_string_buffer(_NAME_BYTES)
    if nvml is None or nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES):
        return None
    return text.value.decode("ascii", "replace")


def _error_name(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(text))
    return (text.value or b"unknown").decode("ascii", "replace")


if __name__ == "__main__":
    driver = read_driver()
    print(json.dumps(driver and asdict(driver)))

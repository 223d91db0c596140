"""The driver is asked by ctypes; these libraries answer as the CUDA and NVML manuals say."""

import ctypes
from typing import Any

from diffusion_rt.runtime.nvidia import Device, Driver, read_driver


class Cuda:
    """libcuda with two devices; every function returns a status, 0 for success."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuGetErrorName(self, status: int, text: Any) -> int:
        text._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:
        name.value = f"GPU \xe9 {handle.value}".encode("latin-1")
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, handle: Any) -> int:
        memory._obj.value = (handle.value + 1) << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        value._obj.value = {75: 9, 76: handle.value}[attribute]
        return 0

    def cuDeviceGetPCIBusId(self, address: Any, size: int, handle: Any) -> int:
        address.value = b"0000:%02d:00.0" % handle.value
        return 0


class Nvml:
    """NVML that knows the second device alone."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, address: Any, device: Any) -> int:
        device._obj.value = 77
        return 0 if address.value == b"0000:01:00.0" else 6

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:
        assert device.value == 77
        memory._obj.free = 123
        return 0


class Absent(Nvml):
    def nvmlInit_v2(self) -> int:
        return 9


def machine(**libraries: Any) -> Any:
    def load(name: str) -> Any:
        stem = name.removeprefix("lib").split(".")[0].replace("nvidia-ml", "nvml")
        if stem not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[stem]

    return load


def test_no_driver() -> None:
    assert read_driver(machine()) is None
    assert read_driver(machine(nvml=Nvml())) is None


def test_devices_with_and_without_nvml() -> None:
    first, second = (Device(f"GPU \ufffd {i}", (9, i), (i + 1) << 30, None) for i in range(2))
    assert read_driver(machine(cuda=Cuda())) == Driver(None, (13, 1), (first, second))
    known = Device(second.name, second.capability, second.memory, 123)
    whole = Driver("580.65.06", (13, 1), (first, known))
    assert read_driver(machine(cuda=Cuda(), nvml=Nvml())) == whole
    assert read_driver(machine(cuda=Cuda(), nvml=Absent())) == Driver(
        None, (13, 1), (first, second)
    )


def test_a_driver_that_does_not_start() -> None:
    driver = read_driver(machine(cuda=Cuda(status=100), nvml=Nvml()))
    trouble = "cuInit answers 100 (CUDA_ERROR_NO_DEVICE)"
    assert driver == Driver("580.65.06", None, (), trouble)


def test_this_machine_answers_without_raising() -> None:
    found = read_driver(ctypes.CDLL)
    assert found is None or isinstance(found, Driver)

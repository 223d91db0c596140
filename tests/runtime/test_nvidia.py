"""The driver is asked by ctypes; these libraries answer as the CUDA and NVML manuals say."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.runtime.nvidia import Device, Driver, ask_driver, read_driver


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


def child(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `script` be the interpreter that `ask_driver` starts."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    "driver",
    [
        None,
        Driver(None, None, (), "cuInit answers 100"),
        Driver("580.65.06", (13, 1), (Device("GPU", (9, 0), 1 << 37, None),)),
    ],
)
def test_the_answer_of_the_child_process(
    driver: Driver | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps(driver and asdict(driver))
    child(f"echo '{answer}'", tmp_path, monkeypatch)
    assert ask_driver() == driver


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("kill -SEGV $$", "asking it ends with status -11"),
        ("exec sleep 60", "it does not answer within 0.5 s"),
    ],
)
def test_a_driver_that_crashes_or_hangs(
    script: str, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(script, tmp_path, monkeypatch)
    assert ask_driver(timeout=0.5) == Driver(None, None, (), trouble)


def test_this_machine_is_asked_in_a_process_and_without() -> None:
    here, apart = read_driver(), ask_driver()
    assert (here is None) == (apart is None)
    if here and apart:  # free memory changes between the two
        assert here.cuda == apart.cuda
        assert [d.name for d in here.devices] == [d.name for d in apart.devices]

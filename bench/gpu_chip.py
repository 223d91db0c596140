"""The GPU and its clocks, asked of the driver's own libraries: no package is needed for it."""

import ctypes
import os
from dataclasses import dataclass, replace
from typing import Any

from diffusion_rt.bench.machine import Device

_MULTIPROCESSORS, _L2_BYTES, _MAJOR, _MINOR = 16, 38, 75, 76  # CUdevice_attribute
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t
_MOST_PROCESSES = 256
_UNKNOWN = (1 << 64) - 1  # bytes, where the driver does not say


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One GPU, as far as a measurement depends on it."""

    name: str
    arch: int  # compute capability times ten
    multiprocessors: int
    memory: int  # bytes
    l2_bytes: int
    cuda: str  # the newest that the driver knows, such as 13.0
    simulated: bool = False

    @property
    def device(self) -> Device:
        """As records name it."""
        return Device(
            kind="gpu", name=self.name, cores=max(self.multiprocessors, 1), memory=self.memory
        )


SIMULATOR = Chip(
    name="simulator",
    arch=90,
    multiprocessors=1,
    memory=1 << 30,
    l2_bytes=1 << 10,
    cuda="none",
    simulated=True,
)


class NoChip(RuntimeError):
    """There is no driver or no GPU; the message says which."""


def this_chip(ordinal: int = 0) -> Chip:
    """The GPU of that number; raises NoChip. Makes no context on it."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoChip("no NVIDIA driver (libcuda.so.1 is not found)") from None

    def ask(name: str, *arguments: Any) -> None:
        status = getattr(cuda, name)(*arguments)
        if status:
            raise NoChip(f"the NVIDIA driver answers {status} to {name}")

    device, number, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    text = ctypes.create_string_buffer(256)

    def attribute(which: int) -> int:
        ask("cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(which), device)
        return number.value

    ask("cuInit", ctypes.c_uint(0))
    ask("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    ask("cuDeviceGetName", text, ctypes.c_int(len(text)), device)
    ask("cuDeviceTotalMem_v2", ctypes.byref(size), device)
    ask("cuDriverGetVersion", ctypes.byref(number))
    version = number.value
    return Chip(
        name=text.value.decode(errors="replace").strip() or "unnamed",
        arch=10 * attribute(_MAJOR) + attribute(_MINOR),
        multiprocessors=attribute(_MULTIPROCESSORS),
        memory=size.value,
        l2_bytes=attribute(_L2_BYTES),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


class Clocks:
    """Driver version and clocks by NVML; where that is missing, nothing is known of them."""

    def __init__(self, name: str) -> None:
        """`name` is the GPU's: NVML may number them otherwise than CUDA does."""
        self._handle = ctypes.c_void_p()
        self._nvml: Any = None
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        count = ctypes.c_uint()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        text = ctypes.create_string_buffer(256)
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
                continue
            if nvml.nvmlDeviceGetName(handle, text, ctypes.c_uint(len(text))):
                continue
            if text.value.decode(errors="replace").strip() == name:
                self._nvml, self._handle = nvml, handle
                return

    def driver(self) -> str | None:
        """Such as 580.95.05."""
        text = ctypes.create_string_buffer(256)
        if self._nvml is None or self._nvml.nvmlSystemGetDriverVersion(
            text, ctypes.c_uint(len(text))
        ):
            return None
        return text.value.decode(errors="replace")

    def now(self) -> dict[str, int]:
        """The clocks at this moment in MHz, under the names that a record's device gives them."""
        found = {}
        for name, which in (("sm_mhz", _SM_CLOCK), ("memory_mhz", _MEMORY_CLOCK)):
            clock = ctypes.c_uint()
            if self._nvml is not None and not self._nvml.nvmlDeviceGetClockInfo(
                self._handle, ctypes.c_uint(which), ctypes.byref(clock)
            ):
                found[name] = clock.value
        return found

    def on(self, device: Device) -> Device:
        """The device with its driver and its clocks at this moment."""
        now = self.now()
        return replace(
            device,
            driver=self.driver(),
            sm_mhz=now.get("sm_mhz"),
            memory_mhz=now.get("memory_mhz"),
        )

    def used(self) -> int | None:
        """Bytes that this process holds on the GPU; None where the driver does not tell them.

        Allocators of contenders keep what they once took, so after a run this is its peak. Inside
        a container the driver may know processes by other numbers, and then nothing is known.
        """
        if self._nvml is None:
            return None
        found = (_Process * _MOST_PROCESSES)()
        count = ctypes.c_uint(_MOST_PROCESSES)
        if self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(
            self._handle, ctypes.byref(count), found
        ):
            return None
        held = [one.used for one in found[: count.value] if one.pid == os.getpid()]
        return int(held[0]) if held and held[0] != _UNKNOWN else None


def own_peak_device() -> int | None:
    """Bytes that this process holds on the GPU, where there is one and the driver tells."""
    try:
        return Clocks(this_chip().name).used()
    except NoChip:
        return None

"""The GPU and its clocks, asked of the driver's own libraries: no package is needed for it."""

import ctypes
from dataclasses import dataclass
from typing import Any

from diffusion_rt.bench.machine import Device

_MULTIPROCESSORS, _L2_BYTES, _MAJOR, _MINOR = 16, 38, 75, 76  # CUdevice_attribute
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t


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

    def now(self) -> dict[str, str]:
        """The clocks at this moment in MHz, under the names that records give them."""
        found = {}
        for name, which in (("sm-mhz", _SM_CLOCK), ("memory-mhz", _MEMORY_CLOCK)):
            clock = ctypes.c_uint()
            if self._nvml is not None and not self._nvml.nvmlDeviceGetClockInfo(
                self._handle, ctypes.c_uint(which), ctypes.byref(clock)
            ):
                found[name] = str(clock.value)
        return found

"""The simulated memory: real host bytes in one reserved range, so that host kernels can run."""

import bisect
import mmap
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.errors import DeviceError, DeviceLost, Misuse, OutOfMemory
from diffusion_rt.kernels.driver.interface import ALIGNMENT

POISON = 0xFF  # NaN as float16, bfloat16, float32 and float64; -1 as an integer
CANARY = 0xC5
RESERVED_BYTES = 1 << 36  # of addresses, not of memory
_MAP_NORESERVE = 0x4000  # linux/mman.h, on x86 and arm64; Python's mmap names it from 3.12 on

State = Literal["pending", "live", "freed"]


class Allocation:
    """Some bytes of the range, fenced by canaries on both sides."""

    def __init__(self, memory: "SimulatedMemory", address: int, nbytes: int, pages: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self.pages = pages  # bytes of whole pages, from ALIGNMENT before the address
        self.state: State = "pending"
        self._memory = memory

    def appear(self) -> None:
        """Become usable: poisoned, with fresh canaries."""
        self.state = "live"
        self._memory.note_live(self)
        self._memory.view(self.address - ALIGNMENT, self.pages)[:] = CANARY
        self._memory.view(self.address, self.nbytes)[:] = POISON

    def check_fence(self) -> None:
        """Raise DeviceLost where something wrote just before or behind."""
        before = self._memory.view(self.address - ALIGNMENT, ALIGNMENT)
        end = self.address + self.nbytes
        behind = self._memory.view(end, self.address - ALIGNMENT + self.pages - end)
        if (before != CANARY).any() or (behind != CANARY).any():
            raise DeviceLost(f"something wrote beside the buffer of {self.nbytes} bytes")


class SimulatedMemory:
    """All allocations of a simulator, of the device and pinned."""

    def __init__(self, device_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._range = mmap.mmap(-1, RESERVED_BYTES, flags=flags)
        self._bytes = np.frombuffer(self._range, np.uint8)
        self._base = self._bytes.ctypes.data
        self._top = 0
        self._starts: list[int] = []
        self._allocations: list[Allocation] = []  # every one there ever was, in order of address
        self._live: dict[int, Allocation] = {}
        self.total = device_bytes
        self.used = 0

    def reserve(self, nbytes: int, *, device: bool) -> Allocation:
        """New addresses, not usable yet; raises OutOfMemory."""
        if nbytes < 1:
            raise Misuse(f"{nbytes} bytes of memory asked for, at least 1 is needed")
        free = self.total - self.used
        if device and nbytes > free:
            raise OutOfMemory(
                f"allocate {nbytes} bytes of device memory: {free} of {self.total} are free; "
                "free device memory, or ask for a smaller size, batch or memory budget",
                2,
            )
        pages = -(-(nbytes + 2 * ALIGNMENT) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._top + pages > RESERVED_BYTES:
            raise OutOfMemory("the simulator's addresses are used up", 2)
        allocation = Allocation(self, self._base + self._top + ALIGNMENT, nbytes, pages)
        self._top += pages
        self._starts.append(allocation.address)
        self._allocations.append(allocation)
        if device:
            self.used += nbytes
        return allocation

    def free(self, allocation: Allocation, *, device: bool) -> None:
        """Make its addresses invalid for ever and give the memory back."""
        allocation.state = "freed"
        self._live.pop(allocation.address, None)
        start = allocation.address - ALIGNMENT - self._base
        self._range.madvise(mmap.MADV_DONTNEED, start, allocation.pages)
        if device:
            self.used -= allocation.nbytes

    def note_live(self, allocation: Allocation) -> None:
        """An allocation is usable from now on."""
        self._live[allocation.address] = allocation

    def find(self, address: int, nbytes: int, what: str) -> Allocation:
        """The allocation that holds these bytes; raises Misuse where none does."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0:
            found = self._allocations[index]
            if address + nbytes <= found.address + found.nbytes and address < (
                found.address + found.nbytes
            ):
                return found
        raise Misuse(f"{what}: {address:#x} with {nbytes} bytes lies in no buffer of this device")

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes themselves, valid as long as the array lives, whatever is freed or closed."""
        start = address - self._base
        return self._bytes[start : start + nbytes]

    def check_fences(self) -> None:
        """Look at the canaries of everything that lives."""
        for allocation in self._live.values():
            allocation.check_fence()


def require(allocation: Allocation, what: str, *, running: bool) -> None:
    """Raise where work touches memory that is not there (any more, or yet)."""
    if allocation.state == "live" or (allocation.state == "pending" and not running):
        return
    trouble = "was freed" if allocation.state == "freed" else "is not allocated yet in this order"
    kind: type[DeviceError] = DeviceLost if running else Misuse
    raise kind(f"{what}: the buffer at {allocation.address:#x} {trouble}")

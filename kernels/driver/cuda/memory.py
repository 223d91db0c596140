"""Device memory, pinned host memory and stream-ordered pools."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.cuda.context import Context
from diffusion_rt.kernels.driver.cuda.stream import CudaStream
from diffusion_rt.kernels.driver.errors import Misuse, OutOfMemory
from diffusion_rt.kernels.driver.resource import Resource


class CudaBuffer(Resource):
    """Device memory that stays where it is until closed."""

    def __init__(self, owner: Resource, context: Context, nbytes: int) -> None:
        owner.require_open()
        driver = context.enter()
        self._context = context
        self._nbytes = nbytes
        what = _what(nbytes, "device")
        try:
            address = context.check(driver.cuMemAlloc(nbytes), what)
        except OutOfMemory as error:
            free, total = context.check(driver.cuMemGetInfo(), "ask for free memory")
            raise OutOfMemory(f"{error} ({free} of {total} bytes are free)", error.code) from None
        self._address = int(address)
        super().__init__(owner)

    @property
    def address(self) -> int:
        self.require_open()
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuMemFree(self._address))


class CudaHostBuffer(Resource):
    """Pinned host memory, mapped as NumPy bytes."""

    def __init__(self, owner: Resource, context: Context, nbytes: int) -> None:
        owner.require_open()
        driver = context.enter()
        self._context = context
        self._nbytes = nbytes
        flags = int(driver.CU_MEMHOSTALLOC_PORTABLE)
        what = _what(nbytes, "pinned host")
        address = context.check(driver.cuMemHostAlloc(nbytes, flags), what)
        self._address = int(address)
        raw = (ctypes.c_uint8 * nbytes).from_address(self._address)
        self._array: NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        super().__init__(owner)

    @property
    def address(self) -> int:
        self.require_open()
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def array(self) -> NDArray[np.uint8]:
        self.require_open()
        return self._array

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuMemFreeHost(self._address))


class CudaPool(Resource):
    """A memory pool of our own, so that other libraries' trimming does not touch it."""

    def __init__(self, owner: Resource, context: Context, ordinal: int) -> None:
        owner.require_open()
        driver = context.enter()
        self._context = context
        properties = driver.CUmemPoolProps()
        properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.handleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = ordinal
        self._pool = context.check(driver.cuMemPoolCreate(properties), "make a memory pool")
        super().__init__(owner)
        # Keep what was freed: the default gives it back to the device at every synchronisation.
        context.check(
            driver.cuMemPoolSetAttribute(
                self._pool,
                driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                driver.cuuint64_t(2**64 - 1),
            ),
            "set a memory pool's threshold",
        )

    def allocate(self, nbytes: int, stream: CudaStream) -> "CudaPoolBuffer":
        self.require_open()
        return CudaPoolBuffer(self, self._context, self._pool, nbytes, stream)

    def trim(self, keep: int = 0) -> None:
        self.require_open()
        driver = self._context.enter()
        self._context.check(driver.cuMemPoolTrimTo(self._pool, keep), "trim a memory pool")

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuMemPoolDestroy(self._pool))


class CudaPoolBuffer(Resource):
    """Device memory of a pool, given back in the order of the stream it was taken on."""

    def __init__(
        self, owner: Resource, context: Context, pool: object, nbytes: int, stream: CudaStream
    ) -> None:
        stream.require_open()
        driver = context.enter()
        self._context = context
        self._nbytes = nbytes
        self._stream = stream
        stream.forbid_in_capture("allocate")
        what = _what(nbytes, "pooled device")
        answer = driver.cuMemAllocFromPoolAsync(nbytes, pool, stream.handle)
        self._address = int(context.check(answer, what))
        super().__init__(owner, stream)

    @property
    def address(self) -> int:
        self.require_open()
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def _before_close(self) -> None:
        self._stream.forbid_in_capture("free")

    def _release(self) -> None:
        if not self._context.lost:
            driver = self._context.enter()
            self._context.quietly(driver.cuMemFreeAsync(self._address, self._stream.handle))


def _what(nbytes: int, kind: str) -> str:
    if nbytes < 1:
        raise Misuse(f"{nbytes} bytes of {kind} memory asked for, at least 1 is needed")
    return f"allocate {nbytes} bytes of {kind} memory"

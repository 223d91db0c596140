"""One GPU: its facts, and everything that is made on it."""

from diffusion_rt.kernels.driver.cuda.context import Context
from diffusion_rt.kernels.driver.cuda.memory import CudaBuffer, CudaHostBuffer, CudaPool
from diffusion_rt.kernels.driver.cuda.module import CudaModule
from diffusion_rt.kernels.driver.cuda.stream import CudaEvent, CudaStream
from diffusion_rt.kernels.driver.cuda.tensor_map import encode
from diffusion_rt.kernels.driver.interface import Memory
from diffusion_rt.kernels.driver.launch import Limits
from diffusion_rt.kernels.driver.resource import Resource
from diffusion_rt.kernels.driver.tensor_map import TensorMap


class CudaDevice(Resource):
    """A GPU behind the NVIDIA driver, by its primary context."""

    def __init__(self, ordinal: int = 0) -> None:
        """Open a device by the number CUDA gives it; raises NoDriver where that cannot be."""
        self._context = context = Context(ordinal)
        self._ordinal = ordinal
        super().__init__()
        driver = context.enter()
        name: bytes = context.check(
            driver.cuDeviceGetName(256, context.device), "ask the device's name"
        )
        self._name = name.split(b"\0")[0].decode(errors="replace").strip()
        major = self._ask(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._ask(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        shared = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        threads = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        multiprocessors = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        self._limits = Limits(
            arch=10 * major + minor,
            shared_bytes=self._ask(shared),
            block_threads=self._ask(threads),
            multiprocessors=self._ask(multiprocessors),
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def arch(self) -> int:
        return self._limits.arch

    @property
    def driver(self) -> str:
        return self._context.version

    @property
    def limits(self) -> Limits:
        return self._limits

    def memory(self) -> Memory:
        self.require_open()
        driver = self._context.enter()
        free, total = self._context.check(driver.cuMemGetInfo(), "ask for free memory")
        return Memory(int(free), int(total))

    def allocate(self, nbytes: int) -> CudaBuffer:
        return CudaBuffer(self, self._context, nbytes)

    def pinned(self, nbytes: int) -> CudaHostBuffer:
        return CudaHostBuffer(self, self._context, nbytes)

    def pool(self) -> CudaPool:
        return CudaPool(self, self._context, self._ordinal)

    def stream(self) -> CudaStream:
        return CudaStream(self, self._context)

    def event(self, *, timed: bool = False) -> CudaEvent:
        return CudaEvent(self, self._context, timed)

    def load(self, image: bytes) -> CudaModule:
        return CudaModule(self, self._context, self._limits, image)

    def tensor_map(self, described: TensorMap) -> bytes:
        self._limits.check_tensor_maps(described.name)
        return encode(self._context, described)

    def _ask(self, kind: object) -> int:
        answer = self._context.api.cuDeviceGetAttribute(kind, self._context.device)
        return int(self._context.check(answer, "ask a fact of the device"))

    def _before_close(self) -> None:
        if not self._context.lost:
            # Buffers are freed below; work that still uses them ends first.
            self._context.quietly(self._context.enter().cuCtxSynchronize())

    def _release(self) -> None:
        self._context.release()

"""Compiled images on the device and their kernels."""

from collections.abc import Sequence
from typing import Any

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.cuda.context import Context
from diffusion_rt.kernels.driver.errors import BadImage
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.driver.resource import Resource


class CudaKernel:
    """A kernel, loaded; launching it allocates nothing, so it may be captured at once."""

    def __init__(
        self,
        module: Resource,
        context: Context,
        limits: Limits,
        function: Any,
        name: str,
        parameters: Sequence[Parameter],
    ) -> None:
        driver = context.enter()
        self.name = name
        self.parameters = tuple(parameters)
        self.function = function
        self._module = module
        self._context = context
        self._limits = limits
        # Lazy loading would load at the first launch, which a capture forbids.
        context.check(driver.cuFuncLoad(function), f"load {name}")
        self._static_shared_bytes = self._attribute("CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES")
        self._shared_bytes_allowed = self._attribute(
            "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        )

    def prepare(self, launch: Launch) -> None:
        """Check the launch, and raise the limit of dynamic shared memory where it needs more."""
        self._module.require_open()
        self._limits.check(launch, self.name, self._static_shared_bytes)
        if launch.shared_bytes <= self._shared_bytes_allowed:
            return
        driver = self._context.enter()
        answer = driver.cuFuncSetAttribute(
            self.function,
            driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            launch.shared_bytes,
        )
        self._context.check(
            answer, f"allow {self.name} {launch.shared_bytes} bytes of shared memory"
        )
        self._shared_bytes_allowed = launch.shared_bytes

    def _attribute(self, name: str) -> int:
        driver = self._context.enter()
        attribute = getattr(driver.CUfunction_attribute, name)
        answer = driver.cuFuncGetAttribute(attribute, self.function)
        return int(self._context.check(answer, f"read {name} of {self.name}"))


class CudaModule(Resource):
    """A loaded cubin or PTX."""

    def __init__(self, owner: Resource, context: Context, limits: Limits, image: bytes) -> None:
        owner.require_open()
        driver = context.enter()
        self._context = context
        self._limits = limits
        if not image:
            raise BadImage("an empty image is no kernel; compile the kernels anew")
        # PTX is read as a C string: make sure it ends.
        answer = driver.cuModuleLoadData(image + b"\0")
        self._module = context.check(answer, f"load a kernel image of {len(image)} bytes")
        super().__init__(owner)

    def kernel(self, name: str, parameters: Sequence[Parameter]) -> CudaKernel:
        self.require_open()
        driver = self._context.enter()
        answer = driver.cuModuleGetFunction(self._module, name.encode())
        function = self._context.check(answer, f"find the kernel {name}")
        return CudaKernel(self, self._context, self._limits, function, name, parameters)

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuModuleUnload(self._module))

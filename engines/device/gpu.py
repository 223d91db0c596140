"""A device and the kernels of the catalogue that were loaded on it."""

import logging
from typing import Protocol

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import ARCHS, Variant
from diffusion_rt.kernels.driver import BadImage, Device, open_device
from diffusion_rt.kernels.driver.interface import Kernel, Module

_LOG = logging.getLogger(__name__)
NEWER = max(ARCHS) + 1
"""A chip that the catalogue does not know: its images are PTX, which the driver compiles."""


class Images(Protocol):
    """Where compiled kernels come from; a simulated device has images of its own kind."""

    def image(self, variant: Variant, arch: int) -> bytes:
        """The image of a kernel for a chip; raises CompileError."""
        ...


class Gpu:
    """A device that loads each kernel once, when it is first wanted."""

    def __init__(self, device: Device, images: Images) -> None:
        """Take the device over: `close` closes it."""
        self.device = device
        self._images = images
        self._kernels: dict[str, Kernel] = {}
        self._told = False
        self._portable: set[str] = set()

    def kernel(self, variant: Variant) -> Kernel:
        """The kernel, ready to launch; BadInput where it must be compiled and cannot be."""
        if variant.name not in self._kernels:
            with translated(f"kernel {variant.name}"):
                module = self._load(variant)
                self._kernels[variant.name] = module.kernel(variant.kernel, variant.parameters)
        return self._kernels[variant.name]

    def may_overlap(self, variant: Variant) -> bool:
        """Whether a kernel that was loaded waits for the one ahead of it by itself.

        PTX is written for the oldest chip, which has no such wait.
        """
        return variant.overlaps and self.device.arch >= 90 and variant.name not in self._portable

    def _load(self, variant: Variant) -> Module:
        """The image for this chip; where the driver refuses it, the PTX for any chip."""
        if self.device.arch not in variant.archs:
            self._portable.add(variant.name)
        try:
            return self.device.load(self._images.image(variant, self.device.arch))
        except BadImage as refused:
            if variant.suffix or self.device.arch not in variant.archs:
                raise  # there is no PTX of it, or it was the PTX
            module = self.device.load(self._images.image(variant, NEWER))
            if not self._told:
                _LOG.warning(
                    "%s: the driver (CUDA %s) refuses kernels compiled ahead of time, and compiles "
                    "them now, which makes this start slow; update it (%s)",
                    *(self.device.name, self.device.driver, refused),
                )
            self._told = True
            self._portable.add(variant.name)
            return module

    def close(self) -> None:
        """Close the device, and with it all that was made from it."""
        self._kernels.clear()
        self.device.close()


def open_gpu(ordinal: int = 0) -> Gpu:
    """The GPU of that number, its kernels kept in the user's cache folder.

    Raises BadInput where there is no driver or no GPU.
    """
    with translated("the GPU"):
        device = open_device(ordinal)
    return Gpu(device, ImageCache(cache_folder("kernels")))

"""A device and the kernels of the catalogue that were loaded on it."""

import logging
from collections.abc import Iterable
from typing import Protocol

from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.kernels.cache import ImageCache, Progress
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import BadImage, Device, open_device
from diffusion_rt.kernels.driver.interface import Kernel, Module

_LOG = logging.getLogger(__name__)
FIRST = CATALOGUE["select_rows"]
"""Small, and wanted by every loop: what the driver says to it, it says to all."""


class Images(Protocol):
    """Where compiled kernels come from; a simulated device has images of its own kind."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        """The image of a kernel for a chip, PTX for None; raises CompileError."""
        ...

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        """Make those that are missing, together; raises CompileError."""
        ...


class Gpu:
    """A device that loads each kernel once, when it is first wanted."""

    def __init__(self, device: Device, images: Images) -> None:
        """Take the device over: `close` closes it."""
        self.device = device
        self._images = images
        self._kernels: dict[str, Kernel] = {}
        self._takes_cubins = True
        self._oldest: set[str] = set()  # loaded from PTX for the oldest chip
        self.plain = False
        """Whether the driver takes no kernel with instructions of this very chip, in any form."""

    def kernel(self, variant: Variant) -> Kernel:
        """The kernel, ready to launch; BadInput where it must be compiled and cannot be."""
        if variant.name not in self._kernels:
            with translated(f"kernel {variant.name}"):
                self._keep(variant)
        return self._kernels[variant.name]

    def compile(self, variants: Iterable[Variant], progress: Progress | None = None) -> None:
        """Compile what is not compiled yet, together, in the form that the driver takes.

        Raises BadInput where that cannot be done.
        """
        if not self._kernels:
            self.kernel(FIRST)
        wanted = [(variant, self.compiled_for) for variant in self._lacking(variants)]
        with translated("compile the kernels"):
            self._images.fill(wanted, progress)

    def prepare(self, variants: Iterable[Variant], progress: Progress | None = None) -> None:
        """Have kernels compiled, and loaded: ready to launch.

        Those with instructions of this very chip are left out where the driver takes none of them;
        then `plain` is set, and that is said once. Raises BadInput as `compile` does.
        """
        wanted = list(variants)
        self.compile(wanted, progress)
        for variant in self._lacking(wanted):
            if not (variant.suffix and self.plain):
                self._prepare(variant)

    def _prepare(self, variant: Variant) -> None:
        with translated(f"kernel {variant.name}"):
            try:
                self._keep(variant)
            except BadImage as refused:
                if not variant.suffix:
                    raise
                self.plain = True
                _LOG.warning(
                    "%s: the driver (CUDA %s) refuses the kernels that are written for this very "
                    "chip, and those for any chip run instead; update it (%s)",
                    *(self.device.name, self.device.driver, refused),
                )

    def _lacking(self, variants: Iterable[Variant]) -> list[Variant]:
        """Those that are not loaded, each once, but for what the driver does not take."""
        return [
            variant
            for variant in dict.fromkeys(variants)
            if variant.name not in self._kernels and not (variant.suffix and self.plain)
        ]

    @property
    def compiled_for(self) -> int | None:
        """The chip that images are made for; None where the driver has to compile PTX."""
        return self.device.arch if self._takes_cubins else None

    def may_overlap(self, variant: Variant) -> bool:
        """Whether a kernel that was loaded waits for the one ahead of it by itself.

        PTX is written for the oldest chip, which has no such wait.
        """
        return variant.overlaps and self.device.arch >= 90 and variant.name not in self._oldest

    def _keep(self, variant: Variant) -> None:
        module = self._load(variant)
        self._kernels[variant.name] = module.kernel(variant.kernel, variant.parameters)

    def _load(self, variant: Variant) -> Module:
        """The image for this chip; where the driver refuses it, its PTX."""
        arch = self.compiled_for
        try:
            module = self.device.load(self._images.image(variant, arch))
        except BadImage as refused:
            if arch not in variant.archs:
                raise  # it was PTX
            arch = None
            module = self.device.load(self._images.image(variant, arch))
            self._takes_cubins = False
            _LOG.warning(
                "%s: the driver (CUDA %s) refuses kernels compiled ahead of time, and compiles "
                "them now, which makes this start slow; update it (%s)",
                *(self.device.name, self.device.driver, refused),
            )
        if arch not in variant.archs and not variant.suffix:
            self._oldest.add(variant.name)
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

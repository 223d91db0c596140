"""The VAE decoder on a device, and the kernel that makes bytes of its picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.captured import Captured
from diffusion_rt.engines.device.errors import translated, with_a_way_out
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import Arrays, Layout, Pinned
from diffusion_rt.engines.device.protocol import DeviceEngine, DeviceGraphs
from diffusion_rt.engines.device.recent import Recent
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.spec import Precision
from diffusion_rt.kernels import pixels as kernel
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import part
from diffusion_rt.kernels.driver.interface import Stream

KEPT = 4
"""Sizes whose arrays and captured run are kept, the latest used."""

GRAPH = "vae_decoder"

Shape = tuple[int, ...]


class DeviceDecoder:
    """The `PixelDecoder` of TensorRT and of the native engine."""

    def __init__(self, graphs: DeviceGraphs, gpu: Gpu) -> None:
        """Open nothing yet."""
        self._graphs = graphs
        self._gpu = gpu
        self._opened: _Opened | None = None

    def prepare(self, latent: Shape, pixels: Shape, precision: Precision | None = None) -> None:
        """Bind the engine to arrays of these shapes; see `engines.protocol.PixelDecoder`."""
        with self._opening() as opened:
            opened.size(latent, pixels, precision)

    def __call__(
        self,
        latent: NDArray[np.float32],
        pixels: NDArray[np.uint8],
        precision: Precision | None = None,
    ) -> bool:
        """Write the pixels; see `engines.protocol.PixelDecoder`."""
        with self._opening() as opened:
            return opened.run(latent, pixels, precision)

    @contextmanager
    def _opening(self) -> "Iterator[_Opened]":
        try:
            with translated(GRAPH):
                if self._opened is None:
                    self._opened = _Opened(self._graphs, self._gpu)
                yield self._opened
        except OutOfMemory as error:
            raise with_a_way_out(error) from None

    def close(self) -> None:
        """Give back the engines and the memory of every size."""
        if self._opened is not None:
            with translated(GRAPH):
                self._opened.close()
        self._opened = None


class _Opened:
    """A stream, and the sizes used last."""

    def __init__(self, graphs: DeviceGraphs, gpu: Gpu) -> None:
        self._graphs, self._gpu = graphs, gpu
        self._stream = gpu.device.stream()
        self._sent, self._fetched = Pinned(gpu.device), Pinned(gpu.device)
        self._sizes: Recent[tuple[Precision | None, Shape, Shape], _Size] = Recent(KEPT)

    def size(self, latent: Shape, pixels: Shape, precision: Precision | None) -> "_Size":
        """The decoder bound to arrays of these shapes."""
        return self._sizes.use(
            (precision, latent, pixels),
            lambda: _Size(self._gpu, self._graphs.open(GRAPH, precision), latent, pixels),
        )

    def run(
        self, latent: NDArray[np.float32], pixels: NDArray[np.uint8], precision: Precision | None
    ) -> bool:
        size = self.size(latent.shape, pixels.shape, precision)
        self._sent.send(self._stream, [(size.latent, latent.astype(size.latent.dtype, copy=False))])
        size.run.enqueue(self._stream)
        found, not_finite = self._fetched.fetch(self._stream, [size.pixels, size.not_finite])
        pixels[...] = found.reshape(pixels.shape)
        return not not_finite.any()

    def close(self) -> None:
        self._stream.synchronize()
        self._sizes.close()
        self._sent.close()
        self._fetched.close()
        self._stream.close()


class _Size:
    """The decoder bound to arrays of one size, and one run of it."""

    def __init__(self, gpu: Gpu, engine: DeviceEngine, latent: Shape, pixels: Shape) -> None:
        self._engine, self._arrays = engine, Arrays(gpu.device)
        self.run = Captured(self._enqueue, lambda: engine.generation)
        try:
            if engine.inputs.keys() != {"latent"} or engine.outputs.keys() != {"image"}:
                names = ", ".join((*engine.inputs, *engine.outputs))
                raise BadInput(f"{GRAPH} has {names}, not latent and image; export the model again")
            images, height, width, colours = pixels
            dtype = engine.outputs["image"].dtype
            self._kernel = gpu.kernel(CATALOGUE[f"pixels.{dtype}"])
            self._count = height * width
            self._launch = kernel.launch(self._count, images)
            ends: Layout = {
                "latent": (latent, engine.inputs["latent"].dtype),
                "image": ((images, colours, height, width), dtype),
            }
            own: Layout = {"pixels": ((-(-prod(pixels) // 8),), "int64"), "flag": ((1,), "int64")}
            bound, made = self._arrays.make(GRAPH, ends, own)
            self.latent, self._image = bound["latent"], bound["image"]
            self.pixels = part(made["pixels"], 0, prod(pixels))
            self.not_finite = made["flag"]
            engine.bind(bound)
        except BaseException:
            self.close()
            raise

    def _enqueue(self, stream: Stream) -> None:
        stream.fill(self.not_finite, 0)
        self._engine.enqueue(stream)
        places = (self._image.address, self.pixels.address, self.not_finite.address)
        stream.launch(self._kernel, self._launch, (*places, self._count))

    def close(self) -> None:
        self.run.close()
        self._engine.close()
        self._arrays.close()

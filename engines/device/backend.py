"""Device engines as a backend: graphs for the host's arrays, and the whole loop on the device."""

from collections.abc import Mapping

from diffusion_rt.engines.device.decoder import DeviceDecoder
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.loop import DeviceDenoiser
from diffusion_rt.engines.device.protocol import DeviceGraphs
from diffusion_rt.engines.device.staged import Staged
from diffusion_rt.engines.protocol import Denoiser, Engine, PixelDecoder
from diffusion_rt.engines.spec import Precision


class DeviceBackend:
    """The graphs of TensorRT, or of the native engine, on one device."""

    def __init__(self, graphs: DeviceGraphs, gpu: Gpu) -> None:
        """Take over `graphs` and the `gpu` they lie on: `close` closes both."""
        self._graphs = graphs
        self._gpu = gpu

    @property
    def name(self) -> str:
        """Such as `trt (NVIDIA H200)`."""
        return f"{self._graphs.name} ({self._gpu.device.name})"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """One graph, fed from the host and read back there."""
        return Staged(graph, lambda: self._graphs.open(graph, precision), self._gpu.device)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Raise BadInput where a graph is not built for these sizes."""
        self._graphs.check(graph, sizes)

    def denoiser(self) -> Denoiser:
        """The loop on the device; it opens the UNet when first called."""
        return DeviceDenoiser(self._graphs, self._gpu)

    def decoder(self) -> PixelDecoder:
        """Latents to pixels on the device; it opens the VAE when first called."""
        return DeviceDecoder(self._graphs, self._gpu)

    def close(self) -> None:
        """Close the graphs, then the device."""
        with translated("close the GPU"):
            self._graphs.close()
            self._gpu.close()

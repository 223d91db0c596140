"""The graphs of a model folder on ONNX Runtime."""

import os

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.onnx_file import MAX_BYTES, check_external, read_onnx
from diffusion_rt.engines.ort.engine import OrtEngine
from diffusion_rt.engines.ort.library import Provider, check_provider, load_library, open_session
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.spec import Precision


class OrtBackend:
    """Loads graphs for the host's cores, or for a CUDA device that ONNX Runtime drives."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        precision: Precision = "float32",
        threads: int | None = None,
        provider: Provider = "cpu",
    ) -> None:
        """Engines for the graphs of `folder`, in `precision` unless `load` says otherwise.

        `threads` is how many cores one graph may use; None takes all that this process may. Raises
        BadInput where ONNX Runtime or the device is missing.
        """
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise BadInput(f"threads={threads!r}, wants 1 to 1024")
        check_provider(load_library(), provider)
        self._folder = folder
        self._precision = precision
        self._threads = threads or len(os.sched_getaffinity(0))
        self._provider = provider

    @property
    def name(self) -> str:
        """Such as `ort (cpu)`."""
        return f"ort ({self._provider})"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """Open one graph: its file is gated, loaded, and its signature held to the manifest's."""
        variant = self._folder.variant(graph, precision or self._precision)
        path = self._folder.path / variant.file
        onnx = read_onnx(read_bytes(path, MAX_BYTES, follow_links=False), str(path))
        check_external(onnx, variant.file, self._folder.manifest.files)
        session = open_session(path, self._provider, self._threads, {})
        return OrtEngine(graph, session, variant)

"""The graphs of a model folder on ONNX Runtime."""

from collections.abc import Iterable

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.onnx_file import (
    MAX_BYTES,
    ExternalTensor,
    check_external,
    read_onnx,
)
from diffusion_rt.engines.ort.engine import OrtEngine
from diffusion_rt.engines.ort.library import (
    Provider,
    check_provider,
    load_library,
    open_session,
)
from diffusion_rt.engines.ort.lowering import lower
from diffusion_rt.engines.ort.threads import usable_cores
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.spec import Precision

# Bytes of weights from which a graph leaves them mapped; see `keeps_mapped`.
MAPPED_FROM = 1 << 30

# Between operators a thread waits actively this long, then sleeps. ONNX Runtime's own second or so
# is 2 % faster on idle cores, and half as fast where other processes want them too.
SPIN_MICROSECONDS = 50


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

        `threads` is how many cores a graph uses; None takes all that this process may. Raises
        BadInput where ONNX Runtime or the device is missing.
        """
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise BadInput(f"threads={threads!r}, wants 1 to 1024")
        check_provider(load_library(), provider)
        self._folder = folder
        self._precision = precision
        self._threads = threads or usable_cores()
        self._provider = provider

    @property
    def name(self) -> str:
        """Such as `ort (cpu)`."""
        return f"ort ({self._provider})"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """Open one graph: its file is gated, loaded, and its signature held to the manifest's."""
        precision = precision or self._precision
        variant = self._folder.variant(graph, precision)
        path = self._folder.path / variant.file
        content = read_bytes(path, MAX_BYTES, follow_links=False)
        onnx = read_onnx(content, str(path))
        check_external(onnx, variant.file, self._folder.manifest.files)
        if self._provider == "cpu" and precision == "float32":
            content = lower(content)
        mapped = self._provider == "cpu" and keeps_mapped(onnx.external, precision)
        session = open_session(
            content,
            path,
            provider=self._provider,
            threads=self._threads,
            entries={
                "session.intra_op.spin_duration_us": str(SPIN_MICROSECONDS),
                "session.disable_prepacking": "1" if mapped else "0",
            },
            disabled=["ConstantFolding"] if mapped else [],
        )
        return OrtEngine(graph, session, variant)


def keeps_mapped(weights: Iterable[ExternalTensor], precision: Precision) -> bool:
    """Whether the weights of matrix products are best read where they lie in the file.

    By default ONNX Runtime folds `Transpose(weight)` and `Cast(weight)` and packs every matrix when
    it loads: private copies of all weights. Without folding and packing, matrices are read from the
    mapped file: pages the system can drop and processes share. That costs 4 to 6 % of a step with
    256 rows (22 of 23 MB, 11.7 against 12.2 ms; 417 MB, 562 against 582 ms) and 0 to 4 % with 2,048
    rows, as SDXL has them at 1024x1024. So it is done from a gigabyte of weights on. Weights that
    the file holds in another type must be cast once, into memory, and are then packed too.
    """
    stored = {(tensor.location, tensor.offset): tensor for tensor in weights}
    as_stored = all(tensor.dtype in (precision, "int64") for tensor in stored.values())
    return as_stored and sum(tensor.length for tensor in stored.values()) >= MAPPED_FROM

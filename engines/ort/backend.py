"""The graphs of a model folder on ONNX Runtime."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

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

LARGE = 1 << 30  # bytes of weights, from which on copies of them are avoided

# Between operators a thread waits actively this long, then sleeps. ONNX Runtime's own far longer
# wait makes a step 2 % faster on idle cores; where other processes want them too, it takes a third
# more of them, and the step up to 1.6 times as long.
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
        profile: Path | None = None,
    ) -> None:
        """Engines for the graphs of `folder`, in `precision` unless `load` says otherwise.

        `threads` is how many cores a graph uses; None takes all that this process may. `profile`
        is for `open_session`. Raises BadInput where ONNX Runtime or the device is missing.
        """
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise BadInput(f"threads={threads!r}, wants 1 to 1024")
        check_provider(load_library(), provider)
        self._folder = folder
        self._precision = precision
        self._threads = threads or usable_cores()
        self._provider = provider
        self._profile = profile

    @property
    def name(self) -> str:
        """Such as `ort (cpu)`."""
        return f"ort ({self._provider})"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """Open one graph: its file is gated, loaded, and its signature held to the manifest's."""
        precision = precision or self._usual(graph)
        variant = self._folder.variant(graph, precision)
        path = self._folder.path / variant.file
        content = read_bytes(path, MAX_BYTES, follow_links=False)
        onnx = read_onnx(content, str(path))
        check_external(onnx, variant.file, self._folder.manifest.files)
        if self._provider == "cpu" and precision == "float32":
            content = lower(content)
        weights = choose_weights(onnx.external, precision)
        session = open_session(
            content,
            path,
            provider=self._provider,
            threads=self._threads,
            entries={
                "session.intra_op.spin_duration_us": str(SPIN_MICROSECONDS),
                "session.disable_prepacking": "0" if weights.packed else "1",
            },
            disabled=[] if weights.folded else ["ConstantFolding"],
            profile=self._profile,
        )
        return OrtEngine(graph, session, variant)

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Nothing: any size is taken."""

    def denoiser(self) -> None:
        """None: the host runs the loop."""

    def decoder(self) -> None:
        """None: the host makes the pixels."""

    def close(self) -> None:
        """Nothing is held but by engines."""

    def _usual(self, graph: str) -> Precision:
        """The backend's precision, but float32 for a VAE that overflows in float16."""
        overflows = graph.startswith("vae_") and self._folder.manifest.vae.force_upcast
        return "float32" if overflows else self._precision


@dataclass(frozen=True, slots=True)
class Weights:
    """What ONNX Runtime makes of constants when it loads a graph.

    `folded`: `Cast(weight)` and `Transpose(weight)` are stored as new weights. `packed`: matrices
    are stored anew in the order the inner loops read.
    """

    folded: bool
    packed: bool


def choose_weights(stored: Iterable[ExternalTensor], precision: Precision) -> Weights:
    """Copies where they are small and make a step faster, the mapped file where they are not.

    Below a gigabyte all is folded and packed: a step with 256 rows then takes 4 to 6 % less (11.7
    against 12.2 ms for 23 MB, 562 against 582 ms for 417 MB). At 2,048 rows, as SDXL has at
    1024x1024, packing gains 0 to 4 %, and copies of all weights are what a machine has no memory
    for: matrices in the file's own type then stay mapped, pages that the system can drop and that
    processes share. Weights in another type must be cast into memory; unfolded, that takes 1.4
    times their size while it loads instead of 1.8.
    """
    tensors = {(tensor.location, tensor.offset): tensor for tensor in stored}.values()
    size = sum(prod(tensor.shape) for tensor in tensors) * np.dtype(precision).itemsize
    as_stored = all(tensor.dtype in (precision, "int64") for tensor in tensors)
    large = size >= LARGE
    return Weights(folded=not large, packed=not (large and as_stored))

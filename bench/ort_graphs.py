"""ONNX Runtime by itself, on our graphs: its own options, bound arrays, and graphs on a GPU.

Our engine `ort` chooses its session's options and hands it the host's arrays. Here ONNX Runtime has
the options it takes by default, and each input and output its place on the device, as its
documentation has it for speed; only what has changed is copied. On a GPU every graph is captured at
its first runs where the CUDA provider allows it (each node on the GPU).
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_rt.bench.contender import Clock
from diffusion_rt.bench.ours import Ours, TimedBackend
from diffusion_rt.command import plain
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.onnx_file import MAX_BYTES
from diffusion_rt.engines.ort.library import PROVIDERS, Provider, check_provider, load_library
from diffusion_rt.engines.protocol import Buffers, Engine, Entries
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.runtime.pipeline import Pipeline

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
# Of the UNet's step what a request does not change: it is copied once, when it is bound.
CONSTANT = "unet_prompt"


class OrtGraphs(Ours):
    """`Pipeline.generate` on ONNX Runtime as it is, on its CUDA provider or a CPU."""

    name = "ort"

    def __init__(
        self,
        *,
        model: Path,
        threads: int,
        device: Provider = "cuda",
        clock: Clock = time.perf_counter,
    ) -> None:
        """Open the model. Raises BadInput where this ONNX Runtime has no CUDA provider."""
        folder = open_model(model)
        self._backend = TimedBackend(GraphBackend(folder, threads, device))
        self._pipeline = Pipeline(folder, self._backend)
        self._clock = clock


class GraphBackend:
    """Loads the graphs of a model folder for one device."""

    def __init__(self, folder: ModelFolder, threads: int, device: Provider) -> None:
        check_provider(load_library(), device)
        self._folder, self._threads, self._device = folder, threads, device

    @property
    def name(self) -> str:
        """Such as `ort (cuda, bound)`."""
        return f"ort ({self._device}, bound)"

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        """One graph: float16 on a GPU, but for a VAE that would overflow in it."""
        upcast = graph.startswith("vae") and self._folder.manifest.vae.force_upcast
        half = self._device == "cuda" and not upcast
        precision = precision or ("float16" if half else "float32")
        variant = self._folder.variant(graph, precision)
        path = self._folder.path / variant.file
        content = read_bytes(path, MAX_BYTES, follow_links=False)
        constant: frozenset[str] = frozenset()
        if graph == "unet_step":
            prompt = self._folder.variant(CONSTANT, precision)
            constant = frozenset(spec.name for spec in prompt.outputs)
        session, captured = self._session(content, path, graph)
        return GraphEngine(
            graph,
            session,
            {spec.name: spec for spec in variant.inputs},
            {spec.name: spec for spec in variant.outputs},
            constant=constant,
            device=self._device,
            captured=captured,
        )

    def check(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Nothing: any size is taken."""

    def denoiser(self) -> None:
        """None: the host runs the loop."""

    def decoder(self) -> None:
        """None: the host makes the pixels."""

    def close(self) -> None:
        """Nothing is held but by engines."""

    def _session(self, content: bytes, path: Path, graph: str) -> tuple[Any, bool]:
        """A session and whether it captures, which the provider may refuse."""
        library = load_library()
        options = library.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        provider = PROVIDERS[self._device]
        if self._device == "cuda":
            try:
                chosen = [(provider, {"enable_cuda_graph": "1", "use_tf32": "0"})]
                return library.InferenceSession(content, options, chosen), True
            except Exception as error:  # whatever it raises, it may still run without
                told = plain(f"ort: {graph} is not captured: {error}")
                print(told, file=sys.stderr)
        return library.InferenceSession(content, options, [provider]), False


class GraphEngine:
    """One graph whose arrays lie on the device at fixed places for each set of shapes."""

    def __init__(
        self,
        graph: str,
        session: Any,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        *,
        constant: frozenset[str],
        device: Provider,
        captured: bool,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._graph, self._session, self._constant = graph, session, constant
        self._device, self._captured = device, captured
        self._places: dict[Shapes, tuple[Any, dict[str, Any], Any]] = {}
        self._bound: tuple[Any, dict[str, Any], Any] | None = None
        self._buffers: Buffers = {}

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Check the arrays, find or make their places, and copy what will not change."""
        check_buffers(self._graph, self.inputs, self.outputs, buffers, only)
        key = tuple(sorted((name, array.shape) for name, array in buffers.items()))
        if key not in self._places:
            self._places[key] = self._made(buffers, len(self._places) + 1)
        self._bound = self._places[key]
        self._buffers = dict(buffers)
        self._send(self._constant)

    def enqueue(self, stream: int | None = None) -> None:
        """Copy what may have changed, run, and copy the outputs back."""
        assert self._bound is not None, "bound before it runs"
        binding, values, options = self._bound
        self._send(self.inputs.keys() - self._constant)
        self._session.run_with_iobinding(binding, options)
        for name in self.outputs:
            self._buffers[name][...] = values[name].numpy()

    def close(self) -> None:
        """Give back the session and all places."""
        self._places.clear()
        self._bound = self._session = None

    def _send(self, names: "frozenset[str] | set[str]") -> None:
        assert self._bound is not None
        for name in names & self.inputs.keys():
            self._bound[1][name].update_inplace(self._buffers[name])

    def _made(self, buffers: Buffers, number: int) -> tuple[Any, dict[str, Any], Any]:
        """A binding, the values it binds by name, and what each of its runs is told."""
        library = load_library()
        binding = self._session.io_binding()
        values = {
            name: library.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            for name, array in buffers.items()
        }
        for name in self.inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in self.outputs:
            binding.bind_ortvalue_output(name, values[name])
        options = library.RunOptions()
        if self._captured:  # a graph for each set of shapes
            options.add_run_config_entry("gpu_graph_id", str(number))
        return binding, values, options

"""One graph on ONNX Runtime, run on arrays that stay where they are."""

from collections.abc import Mapping

from diffusion_rt.engines.binding import check_buffers
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.ort.library import Argument, Binding, Session, translated, trim_memory
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import TensorSpec

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}


class OrtEngine:
    """Reads and writes the bound arrays in place: ONNX Runtime gets their addresses."""

    def __init__(self, graph: str, session: Session, variant: GraphVariant) -> None:
        """Take a session whose signature is the manifest's; BadInput where it is another."""
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in variant.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in variant.outputs}
        self._graph = graph
        self._session: Session | None = session
        self._binding: Binding | None = None
        self._buffers: Buffers = {}
        _check_signature(variant.file, self.inputs, {a.name: a for a in session.get_inputs()})
        _check_signature(variant.file, self.outputs, {a.name: a for a in session.get_outputs()})

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        """Check the arrays and hand their addresses to ONNX Runtime."""
        if self._session is None:
            raise BadInput(f"{self._graph}: the engine is closed; load it again")
        check_buffers(self._graph, self.inputs, self.outputs, buffers, only)
        with translated(self._graph):
            binding = self._session.io_binding()
            for names, bind in (
                (self.inputs, binding.bind_input),
                (self.outputs, binding.bind_output),
            ):
                for name in names:
                    array = buffers[name]
                    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._binding = binding
        self._buffers = dict(buffers)  # keeps them alive

    def enqueue(self, stream: int | None = None) -> None:
        """Run once and return when the outputs are written."""
        if stream is not None:
            raise BadInput(f"{self._graph}: onnxruntime takes no stream here; pass None")
        if self._session is None or self._binding is None:
            raise BadInput(f"{self._graph}: no arrays are bound; call bind first")
        with translated(self._graph):
            self._session.run_with_iobinding(self._binding)

    def close(self) -> None:
        """Give back the session with its weights and arena."""
        if self._session is not None:
            self._binding = None
            self._session = None
            self._buffers = {}
            trim_memory()


def _check_signature(
    file: str, wanted: Mapping[str, TensorSpec], found: Mapping[str, Argument]
) -> None:
    if wanted.keys() != found.keys():
        raise BadInput(
            f"{file}: has {', '.join(sorted(found))}, the manifest says "
            f"{', '.join(sorted(wanted))}; export the model again"
        )
    for name, spec in wanted.items():
        argument = found[name]
        fits = argument.type == _TYPES[spec.dtype] and len(argument.shape) == len(spec.shape)
        if not fits or any(
            isinstance(is_, int) and isinstance(says, int) and is_ != says
            for is_, says in zip(argument.shape, spec.shape, strict=True)
        ):
            raise BadInput(
                f"{file}: {name} is {argument.type} {list(argument.shape)}, the manifest says "
                f"{spec.dtype} {list(spec.shape)}; export the model again"
            )

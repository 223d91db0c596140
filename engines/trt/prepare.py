"""An exported graph as TensorRT is given it: edited bytes, and where its weights lie."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.onnx_file import ITEM_SIZES, MAX_BYTES, check_external, read_onnx
from diffusion_rt.engines.protobuf import Refused
from diffusion_rt.engines.trt.edits import edit
from diffusion_rt.engines.trt.onnx_graph import read_graph
from diffusion_rt.engines.trt.options import Edits
from diffusion_rt.engines.trt.weights import MappedWeight, Weight, in_memory
from diffusion_rt.engines.typed_json import encode


@dataclass(frozen=True, slots=True)
class Prepared:
    """What TensorRT parses: ONNX bytes, and the weights that they leave out."""

    graph: str  # of spec.GRAPHS
    variant: GraphVariant  # the exported file, with inputs and outputs, which stay as they are
    content: bytes
    weights: tuple[Weight, ...]
    # The initializers whose numbers are in `content`.
    constants: Mapping[str, MappedWeight] = field(compare=False, repr=False)

    @property
    def sha256(self) -> str:
        """The hash of the bytes and of the types that the weights are wanted in."""
        types = json.dumps(encode(self.weights)).encode()
        return hashlib.sha256(len(types).to_bytes(8, "little") + types + self.content).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """The size of all weights as the network has them; bytes that two share count once."""
        sizes = {(w.location, w.source.offset, w.dtype): w.nbytes for w in self.weights}
        return sum(sizes.values())


def prepare(model: ModelFolder, graph: str, edits: Edits) -> Prepared:
    """Read one graph of the model, and change it as `edits` say; no weight is read.

    Raises BadInput where the graph was not exported in the precision that this starts from, is
    damaged, or has what the edits cannot treat.
    """
    variant = model.variant(graph, edits.source)
    path = model.path / variant.file
    content = read_bytes(path, MAX_BYTES, follow_links=False)
    found = read_onnx(content, str(path))
    check_external(found, variant.file, model.manifest.files)
    try:
        network = read_graph(content, found)
        edit(network, edits, graph)
    except Refused as refused:
        raise BadInput(f"{path}: {refused}; export the model again") from None
    folder = PurePosixPath(variant.file).parent
    weights = tuple(
        Weight(
            tensor.name,
            ITEM_SIZES[tensor.dtype][0],
            tensor.source,
            str(folder / tensor.source.location),
        )
        for tensor in network.tensors.values()
        if tensor.source is not None
    )
    constants = {
        tensor.name: in_memory(tensor.name, ITEM_SIZES[tensor.dtype][0], tensor.data)
        for tensor in network.tensors.values()
        if tensor.source is None
    }
    return Prepared(graph, variant, network.content(), weights, constants)

"""The names that an exported graph must have, held against it before it is used."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.protocol import Engine


def check_names(graph: str, engine: Engine, *, inputs: Set[str], outputs: Set[str]) -> None:
    """Raise BadInput unless the graph reads and writes exactly these."""
    for kind, found, wanted in (
        ("input", engine.inputs, inputs),
        ("output", engine.outputs, outputs),
    ):
        for name in sorted(wanted - found.keys()):
            raise BadInput(f"{graph} has no {kind} {name}; export the model again")
        for name in sorted(found.keys() - wanted):
            raise BadInput(f"{graph} has an {kind} {name}, unknown here; export the model again")


def output_buffers(graph: str, engine: Engine, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """A zeroed array for each output; `sizes` gives every symbol of its shape, else BadInput."""
    found = {}
    for name, spec in engine.outputs.items():
        try:
            found[name] = np.zeros(spec.resolve(sizes), spec.dtype)
        except KeyError as unknown:
            raise BadInput(
                f"{graph}: output {name} has a size {unknown}, wants of {', '.join(sizes)} alone; "
                "export the model again"
            ) from None
    return found

"""The arrays an engine reads and writes, held against its signature before a pointer is taken."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.lib.array_utils import byte_bounds

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import TensorSpec

Signature = Mapping[str, TensorSpec]


def check_buffers(
    graph: str,
    inputs: Signature,
    outputs: Signature,
    buffers: Buffers,
    only: Entries | None = None,
) -> None:
    """BadInput where `buffers` are not exactly the arrays that the graph needs.

    Every input and output has one, of its dtype and rank, C-contiguous, outputs writable; a symbol
    has one size throughout; and no output lies over another array. `only` names outputs, and
    entries that they have.
    """
    specs = {**inputs, **outputs}
    if missing := specs.keys() - buffers.keys():
        raise BadInput(f"{graph}: no array for {_names(missing)}; wants {_names(specs)}")
    if unknown := buffers.keys() - specs.keys():
        raise BadInput(f"{graph}: has no {_names(unknown)}; wants {_names(specs)}")
    sizes: dict[str, tuple[int, str]] = {}
    for name, spec in specs.items():
        array = buffers[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(spec.dtype):
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BadInput(f"{graph}: {name}: got {got}, wants {spec.dtype}")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise BadInput(f"{graph}: {name}: not C-contiguous; pass np.ascontiguousarray of it")
        if name in outputs and not array.flags.writeable:
            raise BadInput(f"{graph}: {name}: a read-only array, wants one to write to")
        check_shape(graph, spec, array.shape, sizes)
    _check_apart(graph, outputs, buffers)
    for name, entries in (only or {}).items():
        if name not in outputs:
            raise BadInput(f"{graph}: has no output {name}; wants one of {_names(outputs)}")
        count = buffers[name].shape[0] if buffers[name].ndim else 0
        if wrong := [entry for entry in entries if not 0 <= entry < count]:
            raise BadInput(f"{graph}: {name} has {count} entries, none is {wrong[0]}")


def check_shape(
    graph: str, spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]
) -> None:
    """One shape against its spec, or BadInput.

    `sizes` holds each symbol's size and the tensor that set it, and takes up new ones.
    """
    wanted = f"wants [{', '.join(map(str, spec.shape))}]"
    if len(shape) != len(spec.shape):
        raise BadInput(f"{graph}: {spec.name}: got shape {list(shape)}, {wanted}")
    for size, dimension in zip(shape, spec.shape, strict=True):
        if isinstance(dimension, str):
            known, other = sizes.setdefault(dimension, (size, spec.name))
            if size != known:
                raise BadInput(
                    f"{graph}: {spec.name}: got shape {list(shape)}, {wanted}, and {dimension} "
                    f"is {known} in {other}"
                )
        elif size != dimension:
            raise BadInput(f"{graph}: {spec.name}: got shape {list(shape)}, {wanted}")
        if size == 0:
            raise BadInput(f"{graph}: {spec.name}: got shape {list(shape)}, wants no zero in it")


def _check_apart(graph: str, outputs: Signature, buffers: Buffers) -> None:
    """Inputs may share memory with each other; an output with nothing."""
    spans = sorted((*byte_bounds(array), name) for name, array in buffers.items())
    end, end_name = 0, ""  # of all arrays so far
    end_output, end_output_name = 0, ""  # of all outputs so far
    for start, stop, name in spans:
        if start < end_output or (name in outputs and start < end):
            other = end_output_name if start < end_output else end_name
            raise BadInput(f"{graph}: {name} and {other} lie over each other in memory")
        if stop > end:
            end, end_name = stop, name
        if name in outputs and stop > end_output:
            end_output, end_output_name = stop, name


def _names(names: Iterable[str], limit: int = 6) -> str:
    found = sorted(names)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" * (len(found) > limit))

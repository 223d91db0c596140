"""Sines and cosines of timesteps and sizes (Vaswani et al., 2017), in either order."""

import numpy as np

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.plan import TimestepEmbedding
from diffusion_rt.engines.native.values import Angles, Waves
from diffusion_rt.engines.native.views import reshaped


def angles(builder: Builder, node: Node) -> bool:
    """Mul of [n, 1] and frequencies [1, half]; False where the node is another Mul."""
    readers = [builder.graph.nodes[i].operator for i in builder.readers(node.outputs[0]) if i >= 0]
    if not readers or not {"Sin", "Cos"}.issuperset(readers):
        return False
    for name, other in (node.inputs, node.inputs[::-1]):
        frequencies = builder.array(other)
        if frequencies is None or builder.array(name) is not None:
            continue
        source = builder.tensor(node, name)
        shape = builder.shape(node.outputs[0])
        fits = source.shape == (shape[0], 1) and len(shape) == 2 and frequencies.ndim <= 2
        if source.dtype != "float32" or frequencies.dtype != np.float32 or not fits:
            builder.refuse(node, "sines of anything but [n, 1] float32 times frequencies")
        if frequencies.size != shape[1]:
            builder.refuse(node, "sines of anything but [n, 1] float32 times frequencies")
        flat = reshaped(source, (shape[0],))
        assert flat is not None, "a dimension of 1 can always go"
        builder.values[node.outputs[0]] = Angles(flat, frequencies.reshape(-1))
        return True
    return False


def wave(builder: Builder, index: int, node: Node) -> None:
    """Sin and Cos."""
    value = builder.values.get(node.inputs[0])
    if not isinstance(value, Angles):
        builder.refuse(node, "a sine of something else than a timestep's angles")
    builder.values[node.outputs[0]] = Waves(value, "s" if node.operator == "Sin" else "c")


def joined(builder: Builder, node: Node) -> bool:
    """Concat of sines and cosines; False where it joins anything else."""
    found = [builder.values.get(name) for name in node.inputs]
    waves = [value for value in found if isinstance(value, Waves)]
    last = len(builder.shape(node.outputs[0])) - 1
    if len(waves) != len(found) or len({id(one.angles) for one in waves}) != 1:
        return False
    if node.whole("axis", 0) not in (-1, last):
        return False
    builder.values[node.outputs[0]] = Waves(waves[0].angles, "".join(one.order for one in waves))
    return True


def halved(builder: Builder, node: Node) -> bool:
    """Slice of sines or of cosines; False where it cuts anything else."""
    value = builder.values.get(node.inputs[0])
    if not isinstance(value, Waves):
        return False
    half = value.angles.frequencies.size
    arrays = [builder.array(name) for name in node.inputs[1:]]
    starts, length = arrays[0], builder.shape(node.outputs[0])[-1]
    kept = builder.shape(node.outputs[0])[:-1] == builder.shape(node.inputs[0])[:-1]
    start = int(starts.item()) if starts is not None and starts.size == 1 else -1
    if not kept or start < 0 or start % half or length % half:
        builder.refuse(node, "a part of sines and cosines that is not all of either")
    order = value.order[start // half : (start + length) // half]
    builder.values[node.outputs[0]] = Waves(value.angles, order)
    return True


def written(builder: Builder, node: Node, name: str) -> None:
    """Make numbers of sines and cosines that another operator is about to read."""
    value = builder.values.get(name)
    if not isinstance(value, Waves):
        return
    if value.order not in ("sc", "cs"):
        builder.refuse(node, "sines and cosines, wants each once")
    frequencies = value.angles.frequencies
    shape = (value.angles.source.shape[0], 2 * frequencies.size)
    output = builder.target(name, shape, fit=lambda view: view if view.strides[-1] == 1 else None)
    builder.emit(
        TimestepEmbedding(
            name=name,
            source=value.angles.source,
            frequencies=builder.constant(f"{name}.frequencies", frequencies),
            cosine_first=value.order == "cs",
            output=output,
        )
    )
    builder.keep(name, output)


RULES = {"Sin": wave, "Cos": wave}

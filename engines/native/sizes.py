"""The shape of every value of a graph at one size, and the values that are arithmetic on sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.graph import Graph, Node
from diffusion_rt.engines.onnx_file import ExternalTensor

MOST = 1 << 40  # elements of a value
MOST_KNOWN = 1 << 20  # elements of a value that is computed here


@dataclass(frozen=True, slots=True)
class Sized:
    """A value's shape, and the value itself where sizes and constants alone make it."""

    shape: tuple[int, ...]
    array: NDArray[Any] | None = None


class Unsuitable(Exception):
    """Why a node has no shape at these sizes."""


def sizes_of(graph: Graph, inputs: Mapping[str, tuple[int, ...]], what: str) -> dict[str, Sized]:
    """Every value's shape, with the graph's inputs of these shapes; `what` names it in messages.

    Raises BadInput where an operator is unknown or does not fit the shapes it reads.
    """
    found = {"": Sized(())}
    for name, constant in graph.constants.items():
        external = isinstance(constant, ExternalTensor)
        found[name] = Sized(constant.shape, None if external else constant)  # type: ignore[arg-type]
    found |= {name: Sized(shape) for name, shape in inputs.items()}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            made = _made(node, [found[name] for name in node.inputs], what)
            found |= zip(node.outputs, made, strict=False)
            found[""] = Sized(())
    return found


def _made(node: Node, read: list[Sized], what: str) -> list[Sized]:
    """What a node makes of what it reads."""
    try:
        if node.operator not in _RULES:
            raise Unsuitable("this operator is not known")
        made = _RULES[node.operator](node, read)
        if len(made) < len(node.outputs):
            raise Unsuitable(f"{len(node.outputs)} outputs")
        for value in made:
            # Of sizes none may be asked for; of numbers there must be some.
            if min(value.shape, default=1) < (value.array is None) or prod(value.shape) > MOST:
                raise Unsuitable(f"it would make {list(value.shape)}")
    except (Unsuitable, ValueError, IndexError, TypeError, ArithmeticError) as wrong:
        shapes = ", ".join(str(list(value.shape)) for value in read)
        raise BadInput(
            f"{what}: node {shown(node.name)}, operator {shown(node.operator)} of {shapes}: "
            f"{wrong}; the native engine cannot run it, run with --engine ort"
        ) from None
    return made


def _want(condition: bool, reason: str) -> None:
    if not condition:
        raise Unsuitable(reason)


def _array(value: Sized) -> NDArray[Any]:
    if value.array is None:
        raise Unsuitable("a size that depends on what is drawn")
    return value.array


def _wholes(value: Sized) -> list[int]:
    return [int(n) for n in _array(value).reshape(-1)]


def _axis(axis: int, rank: int) -> int:
    _want(-rank <= axis < rank, f"axis {axis} of {rank} dimensions")
    return axis % rank


def _computed(
    compute: Callable[..., Any],
) -> Callable[[Node, list[Sized]], list[Sized]]:
    """A rule for an operator on each element; where both are known so is the result."""

    def rule(node: Node, read: list[Sized]) -> list[Sized]:
        arrays = [value.array for value in read]
        shape = np.broadcast_shapes(*(value.shape for value in read))
        if prod(shape) > MOST_KNOWN or any(array is None for array in arrays):
            return [Sized(shape)]
        return [Sized(shape, np.asarray(compute(*arrays)))]

    return rule


def _divide(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Towards zero for whole numbers, as ONNX has it."""
    if not np.issubdtype(left.dtype, np.integer):
        return np.asarray(left / right)
    _want(bool(np.all(right != 0)), "a division by zero")
    return np.asarray(np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right)))


def _same(node: Node, read: list[Sized]) -> list[Sized]:
    return [Sized(read[0].shape)]


def _cast(node: Node, read: list[Sized]) -> list[Sized]:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}
    kind = node.whole("to", 0)
    _want(kind in kinds, f"a cast to type {kind}")
    array = read[0].array
    return [Sized(read[0].shape, None if array is None else array.astype(kinds[kind]))]


def _shape(node: Node, read: list[Sized]) -> list[Sized]:
    end = node.attributes.get("end")
    taken = read[0].shape[node.whole("start", 0) : end if isinstance(end, int) else None]
    return [Sized((len(taken),), np.array(taken, np.int64))]


def _viewed(value: Sized, shape: tuple[int, ...]) -> list[Sized]:
    return [Sized(shape, None if value.array is None else value.array.reshape(shape))]


def _reshape(node: Node, read: list[Sized]) -> list[Sized]:
    wanted, had = _wholes(read[1]), read[0].shape
    if not node.whole("allowzero", 0):
        _want(len(had) >= len(wanted) or 0 not in wanted[len(had) :], "a 0 with no size to copy")
        wanted = [had[i] if size == 0 else size for i, size in enumerate(wanted)]
    rest = prod(size for size in wanted if size >= 0)
    if -1 in wanted:
        _want(wanted.count(-1) == 1 and rest > 0 and prod(had) % rest == 0, f"a shape {wanted}")
        wanted[wanted.index(-1)] = prod(had) // rest
    _want(min(wanted, default=1) >= 0 and prod(wanted) == prod(had), f"a shape {wanted}")
    return _viewed(read[0], tuple(wanted))


def _squeeze(node: Node, read: list[Sized]) -> list[Sized]:
    shape = read[0].shape
    axes = [i for i, size in enumerate(shape) if size == 1]
    if len(read) > 1:
        axes = [_axis(axis, len(shape)) for axis in _wholes(read[1])]
    _want(all(shape[axis] == 1 for axis in axes), "a dimension that is not 1")
    return _viewed(read[0], tuple(size for i, size in enumerate(shape) if i not in axes))


def _unsqueeze(node: Node, read: list[Sized]) -> list[Sized]:
    axes = _wholes(read[1])
    rank = len(read[0].shape) + len(axes)
    places = {_axis(axis, rank) for axis in axes}
    _want(len(places) == len(axes), "an axis twice")
    sizes = iter(read[0].shape)
    return _viewed(read[0], tuple(1 if i in places else next(sizes) for i in range(rank)))


def _transpose(node: Node, read: list[Sized]) -> list[Sized]:
    shape = read[0].shape
    order = node.wholes("perm", tuple(reversed(range(len(shape)))))
    _want(sorted(order) == list(range(len(shape))), f"the order {order}")
    array = read[0].array
    return [
        Sized(tuple(shape[i] for i in order), None if array is None else array.transpose(order))
    ]


def _concat(node: Node, read: list[Sized]) -> list[Sized]:
    axis = _axis(node.whole("axis", 0), len(read[0].shape))
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in read}
    _want(len(rests) == 1, "other sizes beside those that are joined")
    total = sum(value.shape[axis] for value in read)
    shape = (*read[0].shape[:axis], total, *read[0].shape[axis + 1 :])
    arrays = [value.array for value in read if value.array is not None]
    known = len(arrays) == len(read) and prod(shape) <= MOST_KNOWN
    return [Sized(shape, np.concatenate(arrays, axis) if known else None)]


def slices(node: Node, shape: tuple[int, ...], read: list[Sized]) -> tuple[slice, ...]:
    """What `Slice` takes of each axis."""
    starts, ends = _wholes(read[1]), _wholes(read[2])
    axes = _wholes(read[3]) if len(read) > 3 and read[3].array is not None else range(len(starts))
    steps = _wholes(read[4]) if len(read) > 4 else [1] * len(starts)
    found = [slice(0, size) for size in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        _want(step == 1, f"steps of {step}")
        place = _axis(axis, len(shape))
        first, last, _ = slice(start, end).indices(shape[place])
        found[place] = slice(first, max(first, last))
    return tuple(found)


def _slice(node: Node, read: list[Sized]) -> list[Sized]:
    taken = slices(node, read[0].shape, read)
    array = read[0].array
    shape = tuple(part.stop - part.start for part in taken)
    return [Sized(shape, None if array is None else array[taken])]


def _split(node: Node, read: list[Sized]) -> list[Sized]:
    shape = read[0].shape
    axis = _axis(node.whole("axis", 0), len(shape))
    if len(read) > 1:
        parts = _wholes(read[1])
    else:
        count = node.whole("num_outputs", 2)
        _want(count > 0 and shape[axis] % count == 0, f"{count} parts of {shape[axis]}")
        parts = [shape[axis] // count] * count
    _want(sum(parts) == shape[axis] and len(parts) == len(node.outputs), f"the parts {parts}")
    return [Sized((*shape[:axis], part, *shape[axis + 1 :])) for part in parts]


def _gather(node: Node, read: list[Sized]) -> list[Sized]:
    _want(node.whole("axis", 0) == 0, "another axis than 0")
    table, ids = read
    shape = (*ids.shape, *table.shape[1:])
    if table.array is None or ids.array is None or prod(shape) > MOST_KNOWN:
        return [Sized(shape)]
    return [Sized(shape, table.array[ids.array])]


def _gather_nd(node: Node, read: list[Sized]) -> list[Sized]:
    _want(node.whole("batch_dims", 0) == 0, "batch dimensions")
    depth = read[1].shape[-1]
    return [Sized((*read[1].shape[:-1], *read[0].shape[depth:]))]


def _range(node: Node, read: list[Sized]) -> list[Sized]:
    start, limit, step = (int(_array(value)) for value in read)
    _want(step != 0 and abs(limit - start) < 1 << 20, f"a range of {limit - start}")
    found = np.arange(start, limit, step, dtype=np.int64)
    return [Sized(found.shape, found)]


def _arg_max(node: Node, read: list[Sized]) -> list[Sized]:
    shape = list(read[0].shape)
    axis = _axis(node.whole("axis", 0), len(shape))
    if node.whole("keepdims", 1):
        shape[axis] = 1
    else:
        del shape[axis]
    return [Sized(tuple(shape))]


def _matmul(node: Node, read: list[Sized]) -> list[Sized]:
    left, right = read[0].shape, read[1].shape
    _want(len(right) == 2 and len(left) >= 2 and left[-1] == right[0], "sizes that do not match")
    return [Sized((*left[:-1], right[1]))]


def _gemm(node: Node, read: list[Sized]) -> list[Sized]:
    left = read[0].shape[:: -1 if node.whole("transA", 0) else 1]
    right = read[1].shape[:: -1 if node.whole("transB", 0) else 1]
    _want(len(left) == len(right) == 2 and left[1] == right[0], "sizes that do not match")
    return [Sized((left[0], right[1]))]


def _conv(node: Node, read: list[Sized]) -> list[Sized]:
    (images, channels, *size), (filters, depth, *kernel) = read[0].shape, read[1].shape
    _want(len(size) == len(kernel) == 2, "another rank than 4")
    _want(channels == depth * node.whole("group", 1), "channels that do not match")
    pads, strides = node.wholes("pads", (0, 0, 0, 0)), node.wholes("strides", (1, 1))
    spread = node.wholes("dilations", (1, 1))
    _want(node.word("auto_pad", "NOTSET") == "NOTSET" and len(pads) == 4, "padding by itself")
    made = [
        (size[i] + pads[i] + pads[i + 2] - spread[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    ]
    _want(min(made) > 0 and min(strides) > 0 and min(pads) >= 0, "no pixel left")
    return [Sized((images, filters, *made))]


def _attention(node: Node, read: list[Sized]) -> list[Sized]:
    query, key, value = (one.shape for one in read[:3])
    _want(len(query) == len(key) == len(value) == 4, "another rank than 4")
    fits = query[:2] == key[:2] == value[:2] and query[3] == key[3] and key[2] == value[2]
    _want(fits, "sizes that do not match")
    return [Sized((*query[:3], value[3]))]


def _resize(node: Node, read: list[Sized]) -> list[Sized]:
    shape = read[0].shape
    if len(read) > 3:
        return [Sized(tuple(_wholes(read[3])))]
    scales = _array(read[2]).reshape(-1)
    _want(len(scales) == len(shape), "other scales than dimensions")
    return [Sized(tuple(int(size * scale) for size, scale in zip(shape, scales, strict=True)))]


def _pad(node: Node, read: list[Sized]) -> list[Sized]:
    shape, pads = read[0].shape, _wholes(read[1])
    _want(len(pads) == 2 * len(shape) and len(read) < 4, "other pads than dimensions")
    ends = pads[len(shape) :]
    return [Sized(tuple(a + n + b for a, n, b in zip(pads, shape, ends, strict=False)))]


def _constant(node: Node, read: list[Sized]) -> list[Sized]:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise Unsuitable("a constant without a tensor")
    return [Sized(value.shape, value)]


_RULES: dict[str, Callable[[Node, list[Sized]], list[Sized]]] = {
    "Add": _computed(np.add),
    "Sub": _computed(np.subtract),
    "Mul": _computed(np.multiply),
    "Div": _computed(_divide),
    "Equal": _computed(np.equal),
    "Identity": lambda node, read: [read[0]],
    "Cast": _cast,
    "Shape": _shape,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Range": _range,
    "ArgMax": _arg_max,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Attention": _attention,
    "GroupNormalization": _same,
    "LayerNormalization": _same,
    "Gelu": _same,
    "Sigmoid": _same,
    "Sin": _same,
    "Cos": _same,
    "Clip": _same,
    "Resize": _resize,
    "Pad": _pad,
    "Constant": _constant,
}

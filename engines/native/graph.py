"""An ONNX graph as it is lowered: nodes in order, attributes and constants as values.

`engines/onnx_file.py` has gated the bytes before; here they are only unpacked.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.onnx_file import (
    ATTRIBUTE,
    GRAPH,
    ITEM_SIZES,
    MAX_FIELDS,
    MODEL,
    NODE,
    TENSOR,
    ExternalTensor,
    OnnxFile,
    read_onnx,
)
from diffusion_rt.engines.protobuf import BLOB, BLOBS, Refused, WireReader, message

Attribute = int | float | bytes | tuple[int, ...] | tuple[float, ...] | NDArray[Any]
Constant = ExternalTensor | NDArray[Any]  # a parameter, or a value that lies in the ONNX file

MOST_NODES = 10_000  # SDXL's largest graph has 3,400

VALUE = message("a value", {1: BLOB, 2: BLOB, 3: BLOB, 4: BLOBS})  # name, type, …

_ARRAYS: dict[int, Any] = {  # TensorProto.DataType of the constants that are unpacked
    1: np.float32,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; an input that is left out is the empty string."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def whole(self, name: str, default: int) -> int:
        """A whole number among the attributes."""
        found = self.attributes.get(name, default)
        return found if isinstance(found, int) else default

    def number(self, name: str, default: float) -> float:
        """A real number among the attributes."""
        found = self.attributes.get(name, default)
        return float(found) if isinstance(found, (int, float)) else default

    def wholes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers among the attributes."""
        found = self.attributes.get(name)
        return tuple(int(n) for n in found) if isinstance(found, tuple) else default

    def word(self, name: str, default: str) -> str:
        """A word among the attributes."""
        found = self.attributes.get(name)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else default


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can run, and every constant by its name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]


def read_graph(content: bytes, what: str, gated: OnnxFile | None = None) -> Graph:
    """The graph of an ONNX file; `what` names it in messages.

    `gated` is what `read_onnx` found in it, where it was asked before. Raises BadInput where that
    refuses the file, where a node reads what nothing before it makes, where a value is made twice,
    and where an output is never made.
    """
    onnx = gated or read_onnx(content, what)
    try:
        graph = _Unpacker(content, {t.name: t for t in onnx.external}).graph()
        _check_order(graph)
    except Refused as refused:
        raise BadInput(f"{what}: {refused}; export the model again") from None
    return graph


def _check_order(graph: Graph) -> None:
    if len(graph.nodes) > MOST_NODES:
        raise Refused(f"{len(graph.nodes)} nodes, at most {MOST_NODES} are lowered")
    made = {*graph.inputs, *graph.constants, ""}
    if len(made) != len(graph.inputs) + len(graph.constants) + 1:
        raise Refused("two inputs or constants have the same name")
    for node in graph.nodes:
        for name in node.inputs:
            if name not in made:
                raise Refused(f"node {shown(node.name)} reads {shown(name)}, which nothing makes")
        for name in node.outputs:
            if name and name in made:
                raise Refused(f"node {shown(node.name)} makes {shown(name)} a second time")
            made.add(name)
    for name in graph.outputs:
        if name not in made:
            raise Refused(f"nothing makes the output {shown(name)}")


class _Unpacker(WireReader):
    """Goes through the messages of one file."""

    def __init__(self, data: bytes, external: Mapping[str, ExternalTensor]) -> None:
        super().__init__(data, MAX_FIELDS)
        self.external = external

    def graph(self) -> Graph:
        (place,) = ((a, b) for n, a, b in self.walk(0, len(self.data), MODEL) if n == 7)
        inputs: list[str] = []
        outputs: list[str] = []
        nodes = []
        constants: list[tuple[str, Constant]] = []
        for number, a, b in self.walk(*place, GRAPH):
            if number == 1:
                nodes.append(self.node(a, b))
            elif number == 5:
                constants.append(self.tensor(a, b))
            elif number in (11, 12):
                name = self.text(self.walk(a, b, VALUE), 1)
                (inputs if number == 11 else outputs).append(name)
        found = dict(constants)
        if len(found) != len(constants) or len(set(inputs)) != len(inputs):
            raise Refused("two inputs or constants have the same name")
        return Graph(tuple(inputs), tuple(outputs), tuple(nodes), found)

    def text(self, fields: list[tuple[int, int, int]], number: int) -> str:
        """A field's text, empty where there is none."""
        return next((self.decoded(a, b) for n, a, b in fields if n == number), "")

    def decoded(self, start: int, end: int) -> str:
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise Refused("a name that is no text") from None

    def node(self, start: int, end: int) -> Node:
        fields = self.walk(start, end, NODE)
        return Node(
            operator=self.text(fields, 4),
            name=self.text(fields, 3),
            inputs=tuple(self.decoded(a, b) for n, a, b in fields if n == 1),
            outputs=tuple(self.decoded(a, b) for n, a, b in fields if n == 2),
            attributes=dict(self.attribute(a, b) for n, a, b in fields if n == 5),
        )

    def attribute(self, start: int, end: int) -> tuple[str, Attribute]:
        name, value = "", None
        floats: list[float] = []
        wholes: list[int] = []
        for number, a, b in self.walk(start, end, ATTRIBUTE):
            if number == 1:
                name = self.decoded(a, b)
            elif number == 2:
                (value,) = struct.unpack_from("<f", self.data, a)
            elif number == 3:
                value = _signed(a)
            elif number == 4:
                value = self.data[a:b]
            elif number == 5:
                value = self.embedded(*self.tensor(a, b))
            elif number == 7:
                floats += self.floats(a, b)
            elif number == 8:
                wholes += [_signed(n) for n in self.numbers(a, b)]
            elif number in (6, 9, 10, 11):
                raise Refused(f"attribute {shown(name)}: strings or graphs, wants numbers")
        if value is None:
            return name, tuple(floats) if floats else tuple(wholes)
        return name, value

    def embedded(self, name: str, tensor: Constant) -> NDArray[Any]:
        if isinstance(tensor, ExternalTensor):
            raise Refused(f"tensor {shown(name)}: an attribute outside the file")
        return tensor

    def numbers(self, start: int, end: int) -> list[int]:
        """One number, or a packed list of them."""
        if end < 0:
            return [start]
        found = []
        while start < end:
            number, start = self.varint(start, end)
            found.append(number)
        return found

    def floats(self, start: int, end: int) -> list[float]:
        length = 4 if end < 0 else end - start
        if length % 4:
            raise Refused("a list of numbers is cut short")
        return list(struct.unpack_from(f"<{length // 4}f", self.data, start))

    def tensor(self, start: int, end: int) -> tuple[str, Constant]:
        """Name and value; `read_onnx` has held the sizes against the bytes."""
        fields = self.walk(start, end, TENSOR)
        name = self.text(fields, 8)
        if any(n == 14 and a == 1 for n, a, _ in fields):
            return name, self.external[name]
        kind = next((a for n, a, _ in fields if n == 2), 0)
        shape = [size for n, a, b in fields if n == 1 for size in self.numbers(a, b)]
        if kind not in _ARRAYS:
            words = ITEM_SIZES.get(kind, ("none",))[0]
            raise Refused(f"tensor {shown(name)}: a constant of type {words}")
        dtype = np.dtype(_ARRAYS[kind])
        raw = next((self.data[a:b] for n, a, b in fields if n == 9), None)
        if raw is not None:
            array = np.frombuffer(raw, dtype)
        elif kind == 1:
            array = np.array([f for n, a, b in fields if n == 4 for f in self.floats(a, b)], dtype)
        else:
            wholes = [_signed(w) for n, a, b in fields if n in (5, 7) for w in self.numbers(a, b)]
            try:
                array = np.array(wholes, np.uint16 if kind == 10 else dtype).view(dtype)
            except OverflowError:
                raise Refused(f"tensor {shown(name)}: a number out of its type's range") from None
        if array.size != prod(shape):
            raise Refused(f"tensor {shown(name)}: {array.size} elements, its shape wants others")
        return name, array.reshape(shape)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number

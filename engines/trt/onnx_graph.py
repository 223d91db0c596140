"""An ONNX graph as nodes and tensors that can be changed, read from a file's bytes and written.

Only what `onnx_file.read_onnx` lets pass comes here, so this reader leaves questions of trust to
it. What a parser has no use for (types of inner values, notes) is read, not written again.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from diffusion_rt.engines.errors import shown
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
)
from diffusion_rt.engines.protobuf import (
    BLOB,
    BLOBS,
    INT,
    Message,
    Refused,
    WireReader,
    bytes_field,
    int_field,
    message,
)

# TensorProto.DataType
FLOAT32, FLOAT16, BFLOAT16, INT64 = 1, 10, 16, 7
FLOATS = (FLOAT32, FLOAT16, BFLOAT16)
HALVES = (FLOAT16, BFLOAT16)

# AttributeProto.AttributeType
_INT, _STRING, _GRAPH = 2, 3, (6, 11)

VALUE = message("a value", {1: BLOB, 2: BLOB, 3: BLOB, 4: BLOBS})  # name, type, notes
TYPE = message("a type", {1: BLOB, 6: BLOB})  # tensor_type, denotation
TENSOR_TYPE = message("a tensor's type", {1: INT, 2: BLOB})  # elem_type, shape
SHAPE = message("a shape", {1: BLOBS})
DIMENSION = message("a dimension", {1: INT, 2: BLOB, 3: BLOB})  # dim_value, dim_param, denotation


@dataclass(slots=True)
class Node:
    """One operator; an input that is left out is the empty name."""

    op: str
    inputs: list[str]
    outputs: list[str]
    name: str = ""
    attributes: dict[str, bytes] = field(default_factory=dict)  # name -> AttributeProto
    domain: str = ""


@dataclass(slots=True)
class Tensor:
    """An initializer: of `dtype` for those who read it, from bytes here or in another file.

    `source` says where the bytes lie and in which type; where that is not `dtype`, they are cast
    as they are read.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    data: bytes = b""  # little-endian, where `source` is None
    source: ExternalTensor | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """Type and shape of a value; 0 or None where the file does not say."""

    dtype: int
    shape: tuple[int | None, ...] | None


@dataclass(slots=True)
class Graph:
    """The graph of one file. `values` holds inputs, outputs and what is between, not tensors."""

    nodes: list[Node]
    tensors: dict[str, Tensor]
    values: dict[str, Value]
    inputs: list[str]
    outputs: list[str]
    _frame: "_Frame"

    def dtype(self, name: str) -> int:
        """The type of a value or tensor; 0 where it is not known."""
        if name in self.tensors:
            return self.tensors[name].dtype
        return self.value(name).dtype

    def value(self, name: str) -> Value:
        """What the file says of a value, perhaps nothing."""
        return self.values.get(name, Value(0, None))

    def readers(self) -> dict[str, list[tuple[Node, int]]]:
        """Value -> the nodes that read it, each with the place among its inputs."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for place, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node, place))
        return found

    def import_domain(self, domain: str, version: int) -> None:
        """Say in the file that it uses operators of another domain."""
        imported = bytes_field(1, _bytes(domain)) + int_field(2, version)
        self._frame = replace(self._frame, head=self._frame.head + bytes_field(8, imported))

    def content(self) -> bytes:
        """The bytes of an ONNX file with this graph in it."""
        frame = self._frame
        parts = [bytes_field(1, _node(node)) for node in self.nodes]
        parts += [bytes_field(2, frame.name)]
        parts += [bytes_field(5, _tensor(tensor)) for tensor in self.tensors.values()]
        parts += [bytes_field(11, frame.declarations[name]) for name in self.inputs]
        parts += [bytes_field(12, frame.declarations[name]) for name in self.outputs]
        return frame.head + bytes_field(7, b"".join(parts))


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is written as it was read: the model's own fields, inputs and outputs."""

    head: bytes
    name: bytes
    declarations: dict[str, bytes]  # input or output -> ValueInfoProto


def read_graph(content: bytes, found: OnnxFile) -> Graph:
    """The graph of a file; `found` is what `read_onnx` found in it.

    Raises Refused where a graph lies within the graph, where two initializers share a name, and
    where a value is no tensor.
    """
    return _Reader(content, found).model()


def int_attribute(name: str, value: int) -> bytes:
    """An attribute that holds an integer."""
    return bytes_field(1, _bytes(name)) + int_field(3, value) + int_field(20, _INT)


def text_attribute(name: str, value: str) -> bytes:
    """An attribute that holds a string."""
    return bytes_field(1, _bytes(name)) + bytes_field(4, _bytes(value)) + int_field(20, _STRING)


def int_of(attribute: bytes) -> int:
    """The integer an attribute holds, 0 where it holds none."""
    reader = WireReader(attribute, MAX_FIELDS)
    fields = reader.walk(0, len(attribute), ATTRIBUTE)
    return next((a for number, a, _ in fields if number == 3), 0)


def float_of(attribute: bytes) -> float:
    """The number an attribute holds, 0 where it holds none."""
    reader = WireReader(attribute, MAX_FIELDS)
    for number, place, _ in reader.walk(0, len(attribute), ATTRIBUTE):
        if number == 2:
            (value,) = struct.unpack_from("<f", attribute, place)
            return float(value)
    return 0.0


def ints_of(attribute: bytes) -> list[int]:
    """The integers an attribute holds in its list."""
    reader, found = WireReader(attribute, MAX_FIELDS), list[int]()
    for number, a, end in reader.walk(0, len(attribute), ATTRIBUTE):
        if number == 8 and end < 0:
            found.append(a)
        while number == 8 and a < end:
            value, a = reader.varint(a, end)
            found.append(value)
    return found


def has_tensor(attribute: bytes) -> bool:
    """Whether an attribute holds tensors."""
    reader = WireReader(attribute, MAX_FIELDS)
    return any(number in (5, 10) for number, _, _ in reader.walk(0, len(attribute), ATTRIBUTE))


class _Reader(WireReader):
    def __init__(self, content: bytes, found: OnnxFile) -> None:
        super().__init__(content, MAX_FIELDS)
        self.external = {tensor.name: tensor for tensor in found.external}
        if len(self.external) != len(found.external):
            raise Refused("two tensors of one name")

    def model(self) -> Graph:
        head, graph = [], (0, 0)
        for number, a, b in self.walk(0, len(self.data), MODEL):
            if number == 7:
                graph = (a, b)
            elif number != 14:
                copied = int_field(number, a) if b < 0 else bytes_field(number, self.data[a:b])
                head.append(copied)
        return self.graph(*graph, b"".join(head))

    def graph(self, start: int, end: int, head: bytes) -> Graph:
        nodes, name = [], b""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Value] = {}
        declarations: dict[str, bytes] = {}
        ends: dict[int, list[str]] = {11: [], 12: []}  # inputs, outputs
        for number, a, b in self.walk(start, end, GRAPH):
            if number == 1:
                nodes.append(self.node(a, b))
            elif number == 2:
                name = self.data[a:b]
            elif number == 5:
                tensor = self.tensor(a, b)
                if tensor.name in tensors:
                    raise Refused("two initializers of one name")
                tensors[tensor.name] = tensor
            elif number in (11, 12, 13):
                spelt, value = self.value(a, b)
                values[spelt] = value
                if number != 13:
                    declarations[spelt] = self.data[a:b]
                    ends[number].append(spelt)
        frame = _Frame(head, name, declarations)
        return Graph(nodes, tensors, values, ends[11], ends[12], frame)

    def node(self, start: int, end: int) -> Node:
        node = Node("", [], [])
        for number, a, b in self.walk(start, end, NODE):
            if number == 5:
                attribute = self.walk(a, b, ATTRIBUTE)
                if any(n in _GRAPH for n, _, _ in attribute):
                    raise Refused("a graph within the graph")
                node.attributes[self.text(attribute, 1)] = self.data[a:b]
            elif number == 1:
                node.inputs.append(_text(self.data[a:b]))
            elif number == 2:
                node.outputs.append(_text(self.data[a:b]))
            elif number == 3:
                node.name = _text(self.data[a:b])
            elif number == 4:
                node.op = _text(self.data[a:b])
            elif number == 7:
                node.domain = _text(self.data[a:b])
        if not node.outputs:
            raise Refused(f"a node {shown(node.op)} without outputs")
        return node

    def tensor(self, start: int, end: int) -> Tensor:
        fields = self.walk(start, end, TENSOR)
        name = self.text(fields, 8)
        dtype = next((a for number, a, _ in fields if number == 2), 0)
        if any(number == 14 and a == 1 for number, a, _ in fields):
            source = self.external.get(name)
            if source is None:
                raise Refused("a tensor whose name is no text")
            return Tensor(name, dtype, source.shape, source=source)
        shape: list[int] = []
        for number, a, b in fields:
            if number == 1:
                shape += [a] if b < 0 else self.packed(a, b)
        raw = [self.data[a:b] for number, a, b in fields if number == 9]
        data = raw[0] if raw else self.typed(fields, dtype)
        return Tensor(name, dtype, tuple(shape), data)

    def typed(self, fields: Sequence[tuple[int, int, int]], dtype: int) -> bytes:
        """The data of a tensor that is spelt number by number, as bytes."""
        item = ITEM_SIZES[dtype][1]
        data = bytearray()
        for number, a, b in fields:
            if number in (4, 10):  # fixed width already: float_data, double_data
                width = 4 if number == 4 else 8
                data += self.data[a : a + width] if b < 0 else self.data[a:b]
            elif number in (5, 7, 11):
                for value in [a] if b < 0 else self.packed(a, b):
                    data += (value & (1 << 8 * item) - 1).to_bytes(item, "little")
        return bytes(data)

    def value(self, start: int, end: int) -> tuple[str, Value]:
        fields = self.walk(start, end, VALUE)
        dtype, shape = 0, None
        for kind in self.inner(fields, 2, TYPE):
            for tensor in self.inner(kind, 1, TENSOR_TYPE):
                dtype = next((a for number, a, _ in tensor if number == 1), 0)
                for dims in self.inner(tensor, 2, SHAPE):
                    shape = tuple(self.size(a, b) for _, a, b in dims)
        return self.text(fields, 1), Value(dtype, shape)

    def size(self, start: int, end: int) -> int | None:
        return next((a for n, a, _ in self.walk(start, end, DIMENSION) if n == 1), None)

    def inner(
        self, fields: Sequence[tuple[int, int, int]], number: int, kind: Message
    ) -> Iterator[list[tuple[int, int, int]]]:
        """The fields of each message that stands under `number`."""
        for n, start, end in fields:
            if n == number:
                yield self.walk(start, end, kind)

    def text(self, fields: Sequence[tuple[int, int, int]], number: int) -> str:
        return _text(next((self.data[a:b] for n, a, b in fields if n == number), b""))

    def packed(self, position: int, end: int) -> list[int]:
        values: list[int] = []
        while position < end:
            value, position = self.varint(position, end)
            values.append(value)
        return values


def _node(node: Node) -> bytes:
    parts = [bytes_field(1, _bytes(name)) for name in node.inputs]
    parts += [bytes_field(2, _bytes(name)) for name in node.outputs]
    parts += [bytes_field(3, _bytes(node.name)), bytes_field(4, _bytes(node.op))]
    parts += [bytes_field(5, attribute) for attribute in node.attributes.values()]
    if node.domain:
        parts.append(bytes_field(7, _bytes(node.domain)))
    return b"".join(parts)


def _tensor(tensor: Tensor) -> bytes:
    parts = [int_field(1, size) for size in tensor.shape]
    parts += [int_field(2, tensor.dtype), bytes_field(8, _bytes(tensor.name))]
    if tensor.source is None:
        parts.append(bytes_field(9, tensor.data))
        return b"".join(parts)
    entries = (
        ("location", tensor.source.location),
        ("offset", str(tensor.source.offset)),
        ("length", str(tensor.source.length)),
    )
    for key, value in entries:
        parts.append(bytes_field(13, bytes_field(1, _bytes(key)) + bytes_field(2, _bytes(value))))
    return b"".join([*parts, int_field(14, 1)])


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

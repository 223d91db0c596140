"""An ONNX file, read under suspicion before any library sees it.

Only the wire format of protocol buffers is read, and of ONNX only what can reach outside the file
or bring foreign code: external data, operator domains, local functions. What this reader does not
know it refuses, so that no other reader of the same bytes finds in them what it did not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import FileRecord

MAX_BYTES = 64 << 20
MAX_FIELDS = 1_000_000  # a node takes about 40
MAX_DEPTH = 16  # of graphs within graphs
MAX_IR_VERSION = 14
MAX_RANK = 8
MAX_SIZE = 1 << 40  # of a dimension, and bytes of a tensor
DOMAINS = (b"", b"ai.onnx")

ITEM_SIZES = {  # TensorProto.DataType: its name and bytes per element
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    4: ("uint16", 2),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    16: ("bfloat16", 2),
}

# The fields of each message that are read over or read: number -> (wire types, may it repeat). A
# field left out here is refused. Plain numbers that repeat may also come packed, as bytes.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Field = tuple[tuple[int, ...], bool]
_INT: _Field = ((_VARINT,), False)
_INTS: _Field = ((_VARINT, _BYTES), True)
_FLOAT: _Field = ((_FIXED32,), False)
_FLOATS: _Field = ((_FIXED32, _BYTES), True)
_DOUBLES: _Field = ((_FIXED64, _BYTES), True)
_BLOB: _Field = ((_BYTES,), False)
_BLOBS: _Field = ((_BYTES,), True)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message's name and tags: number << 3 | wire type -> may it repeat."""

    name: str
    tags: Mapping[int, bool]


def _message(name: str, fields: Mapping[int, _Field]) -> _Message:
    tags = {n << 3 | wire: many for n, (wires, many) in fields.items() for wire in wires}
    return _Message(name, tags)


_MODEL = _message(
    "the model",
    {
        1: _INT,  # ir_version
        2: _BLOB,  # producer_name
        3: _BLOB,  # producer_version
        4: _BLOB,  # domain
        5: _INT,  # model_version
        6: _BLOB,  # doc_string
        7: _BLOB,  # graph
        8: _BLOBS,  # opset_import
        14: _BLOBS,  # metadata_props
    },
)
_OPSET = _message("an opset", {1: _BLOB, 2: _INT})  # domain, version
_GRAPH = _message(
    "a graph",
    {
        1: _BLOBS,  # node
        2: _BLOB,  # name
        5: _BLOBS,  # initializer
        10: _BLOB,  # doc_string
        11: _BLOBS,  # input
        12: _BLOBS,  # output
        13: _BLOBS,  # value_info
        16: _BLOBS,  # metadata_props
    },
)
_NODE = _message(
    "a node",
    {
        1: _BLOBS,  # input
        2: _BLOBS,  # output
        3: _BLOB,  # name
        4: _BLOB,  # op_type
        5: _BLOBS,  # attribute
        6: _BLOB,  # doc_string
        7: _BLOB,  # domain
        9: _BLOBS,  # metadata_props
    },
)
_ATTRIBUTE = _message(
    "an attribute",
    {
        1: _BLOB,  # name
        2: _FLOAT,  # f
        3: _INT,  # i
        4: _BLOB,  # s
        5: _BLOB,  # t
        6: _BLOB,  # g
        7: _FLOATS,  # floats
        8: _INTS,  # ints
        9: _BLOBS,  # strings
        10: _BLOBS,  # tensors
        11: _BLOBS,  # graphs
        13: _BLOB,  # doc_string
        20: _INT,  # type
    },
)
_TENSOR = _message(
    "a tensor",
    {
        1: _INTS,  # dims
        2: _INT,  # data_type
        4: _FLOATS,  # float_data
        5: _INTS,  # int32_data
        7: _INTS,  # int64_data
        8: _BLOB,  # name
        9: _BLOB,  # raw_data
        10: _DOUBLES,  # double_data
        11: _INTS,  # uint64_data
        12: _BLOB,  # doc_string
        13: _BLOBS,  # external_data
        14: _INT,  # data_location
        16: _BLOBS,  # metadata_props
    },
)
_ENTRY = _message("an entry of external_data", {1: _BLOB, 2: _BLOB})  # key, value


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file, `location`, relative to the ONNX file's folder."""

    name: str
    dtype: str  # as NumPy spells it, or bfloat16
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


@dataclass(slots=True)
class OnnxFile:
    """What was found in an ONNX file, with that of the graphs inside its graphs."""

    opset: int = 0
    nodes: int = 0
    external: list[ExternalTensor] = field(default_factory=list)


def read_onnx(content: bytes, what: str) -> OnnxFile:
    """Read an ONNX file whose bytes are `content`; `what` names it in messages.

    Raises BadInput where it is damaged or too big, has an operator outside the standard domain, a
    local function, a sparse or a string tensor, or a field that this reader does not know.
    """
    if len(content) > MAX_BYTES:
        raise BadInput(f"{what}: {len(content)} bytes long, at most {MAX_BYTES} are read")
    reader = _Reader(content)
    try:
        reader.model()
    except _Refused as refused:
        raise BadInput(f"{what}: {refused}; export the model again") from None
    return reader.found


def check_external(onnx: OnnxFile, file: str, files: Mapping[str, FileRecord]) -> None:
    """BadInput unless all external data of ONNX file `file` lies within the manifest's `files`.

    Paths are compared as they are spelt: the manifest's are known to stay inside the folder.
    """
    folder = PurePosixPath(file).parent
    for tensor in onnx.external:
        record = files.get(str(folder / tensor.location))
        place = f"{file}: tensor {shown(tensor.name)}: external data"
        if record is None or tensor.location.startswith("/"):
            raise BadInput(
                f"{place} in {shown(tensor.location)}, wants a file of the manifest; export the "
                "model again"
            )
        if tensor.offset + tensor.length > record.size:
            raise BadInput(
                f"{place} at {tensor.offset} + {tensor.length} bytes, {tensor.location} has "
                f"{record.size}; export the model again"
            )


class _Refused(Exception):
    """Why the file is refused."""


class _Reader:
    """Walks the messages of one file; positions are indices into `data`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.found = OnnxFile()
        self.fields_left = MAX_FIELDS

    def model(self) -> None:
        graph = None
        for number, start, end in self.walk(0, len(self.data), _MODEL):
            if number == 1 and not 3 <= start <= MAX_IR_VERSION:
                raise _Refused(f"IR version {start}, wants 3 to {MAX_IR_VERSION}")
            if number == 8:
                self.opset(start, end)
            elif number == 7:
                graph = (start, end)
        if graph is None:
            raise _Refused("no ONNX graph in it")
        if not self.found.opset:
            raise _Refused("no version of the standard operators")
        self.graph(*graph, depth=1)

    def opset(self, start: int, end: int) -> None:
        domain, version = b"", 0
        for number, a, b in self.walk(start, end, _OPSET):
            if number == 1:
                domain = self.data[a:b]
            else:
                version = a
        self.check_domain(domain)
        if self.found.opset or not 1 <= version <= 1000:
            raise _Refused(f"opset {version}, wants one version of the standard operators")
        self.found.opset = version

    def check_domain(self, domain: bytes) -> None:
        if domain not in DOMAINS:
            raise _Refused(f"operators of domain {_text(domain)}, wants standard ONNX only")

    def graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Refused(f"graphs within graphs, over {MAX_DEPTH} deep")
        for number, a, b in self.walk(start, end, _GRAPH):
            if number == 1:
                self.node(a, b, depth)
            elif number == 5:
                self.tensor(a, b)

    def node(self, start: int, end: int, depth: int) -> None:
        self.found.nodes += 1
        for number, a, b in self.walk(start, end, _NODE):
            if number == 5:
                self.attribute(a, b, depth)
            elif number == 7:
                self.check_domain(self.data[a:b])

    def attribute(self, start: int, end: int, depth: int) -> None:
        for number, a, b in self.walk(start, end, _ATTRIBUTE):
            if number in (5, 10):
                self.tensor(a, b)
            elif number in (6, 11):
                self.graph(a, b, depth + 1)

    def tensor(self, start: int, end: int) -> None:
        name, kind, external, embedded = b"", 0, False, -1
        shape: list[int] = []
        entries: list[tuple[int, int]] = []
        for number, a, b in self.walk(start, end, _TENSOR):
            if number == 1:
                shape += [a] if b < 0 else self.packed(a, b)
                if len(shape) > MAX_RANK:
                    raise _Refused(f"tensor {_text(name)}: over {MAX_RANK} dimensions")
            elif number == 2:
                kind = a
            elif number == 8:
                name = self.data[a:b]
            elif number == 9:
                embedded = b - a
            elif number == 13:
                entries.append((a, b))
            elif number == 14:
                external = a == 1
                if a > 1:
                    raise _Refused(f"tensor {_text(name)}: data_location {a}, wants 0 or 1")
            elif number in (4, 5, 7, 10, 11):
                embedded = max(embedded, 0)
        if kind not in ITEM_SIZES:
            raise _Refused(f"tensor {_text(name)}: data type {kind} is not known")
        dtype, item = ITEM_SIZES[kind]
        length = item * math.prod(shape)
        if length > MAX_SIZE or any(size > MAX_SIZE for size in shape):
            raise _Refused(f"tensor {_text(name)}: a shape of {length} bytes")
        if not external:
            if entries:
                raise _Refused(f"tensor {_text(name)}: external data that is not used")
            if embedded > 0 and embedded != length:
                raise _Refused(f"tensor {_text(name)}: {embedded} bytes, its shape wants {length}")
            if math.prod(shape) > end - start:  # an element takes a byte at least
                raise _Refused(f"tensor {_text(name)}: fewer elements than its shape wants")
            return
        if embedded >= 0:
            raise _Refused(f"tensor {_text(name)}: data both in the file and outside")
        location, offset = self.place(entries, name, length)
        tensor = ExternalTensor(
            name.decode("utf-8", "replace"), dtype, tuple(shape), location, offset, length
        )
        self.found.external.append(tensor)

    def place(self, entries: list[tuple[int, int]], name: bytes, wanted: int) -> tuple[str, int]:
        """Location and offset of external data, whose length must be `wanted`."""
        found: dict[bytes, bytes] = {}
        for start, end in entries:
            pair = {n: self.data[a:b] for n, a, b in self.walk(start, end, _ENTRY)}
            key = pair.get(1, b"")
            if key not in (b"location", b"offset", b"length") or key in found:
                raise _Refused(
                    f"tensor {_text(name)}: external data with {_text(key)}, wants location, "
                    "offset and length, each once"
                )
            found[key] = pair.get(2, b"")
        numbers = (found.get(b"offset", b"0"), found.get(b"length", b""))
        if not all(digits.isdigit() and len(digits) <= 15 for digits in numbers):
            raise _Refused(f"tensor {_text(name)}: offset and length want whole numbers")
        if int(numbers[1]) != wanted:
            raise _Refused(
                f"tensor {_text(name)}: {int(numbers[1])} bytes, its shape wants {wanted}"
            )
        try:
            return found.get(b"location", b"").decode(), int(numbers[0])
        except UnicodeDecodeError:
            raise _Refused(f"tensor {_text(name)}: a location that is no text") from None

    def walk(self, position: int, end: int, message: _Message) -> list[tuple[int, int, int]]:
        """The fields of one message: (number, value, -1), or (number, start, end) for bytes."""
        data, tags = self.data, message.tags
        fields: list[tuple[int, int, int]] = []
        seen = 0
        while position < end:
            tag = data[position]
            position += 1
            if tag >= 0x80:
                tag, position = self.varint(position - 1, end)
            many = tags.get(tag)
            number = tag >> 3
            if many is None:
                raise _Refused(f"{message.name} has field {number} (type {tag & 7}), not known")
            if not many:
                if seen >> number & 1:
                    raise _Refused(f"{message.name} has field {number} twice")
                seen |= 1 << number
            elif len(fields) > self.fields_left:
                raise _Refused(f"over {MAX_FIELDS} fields")
            wire = tag & 7
            if wire == _BYTES:
                length = data[position] if position < end else 0x80
                position += 1
                if length >= 0x80:
                    length, position = self.varint(position - 1, end)
                fields.append((number, position, position + length))
                position += length
            elif wire == _VARINT:
                value, position = self.varint(position, end)
                fields.append((number, value, -1))
            else:
                fields.append((number, position, -1))
                position += 4 if wire == _FIXED32 else 8
        if position > end:
            raise _Refused(f"{message.name} is cut short")
        self.fields_left -= len(fields)
        return fields

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """An unsigned number of at most 64 bits, and the place after it."""
        value = shift = 0
        while position < end and shift < 64:
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position
            shift += 7
        raise _Refused("a number is cut short or too long")

    def packed(self, position: int, end: int) -> list[int]:
        """Dimensions, as far as their number is allowed."""
        values: list[int] = []
        while position < end and len(values) <= MAX_RANK:
            value, position = self.varint(position, end)
            values.append(value)
        return values


def _text(name: bytes) -> str:
    return shown(name.decode("utf-8", "replace"))

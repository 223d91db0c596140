"""An ONNX file, read under suspicion before any library sees it.

Of ONNX only that is read which can reach outside the file or bring foreign code: external data,
operator domains, local functions. What this reader does not know it refuses, so that no other
reader of the same bytes finds in them what it did not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import FileRecord
from diffusion_rt.engines.protobuf import (
    BLOB,
    BLOBS,
    DOUBLES,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    Refused,
    WireReader,
    message,
)

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

# Of each message the fields that are read, and those that are known to be harmless.
MODEL = message(
    "the model",
    {
        1: INT,  # ir_version
        2: BLOB,  # producer_name
        3: BLOB,  # producer_version
        4: BLOB,  # domain
        5: INT,  # model_version
        6: BLOB,  # doc_string
        7: BLOB,  # graph
        8: BLOBS,  # opset_import
        14: BLOBS,  # metadata_props
    },
)
OPSET = message("an opset", {1: BLOB, 2: INT})  # domain, version
GRAPH = message(
    "a graph",
    {
        1: BLOBS,  # node
        2: BLOB,  # name
        5: BLOBS,  # initializer
        10: BLOB,  # doc_string
        11: BLOBS,  # input
        12: BLOBS,  # output
        13: BLOBS,  # value_info
        16: BLOBS,  # metadata_props
    },
)
NODE = message(
    "a node",
    {
        1: BLOBS,  # input
        2: BLOBS,  # output
        3: BLOB,  # name
        4: BLOB,  # op_type
        5: BLOBS,  # attribute
        6: BLOB,  # doc_string
        7: BLOB,  # domain
        9: BLOBS,  # metadata_props
    },
)
ATTRIBUTE = message(
    "an attribute",
    {
        1: BLOB,  # name
        2: FLOAT,  # f
        3: INT,  # i
        4: BLOB,  # s
        5: BLOB,  # t
        6: BLOB,  # g
        7: FLOATS,  # floats
        8: INTS,  # ints
        9: BLOBS,  # strings
        10: BLOBS,  # tensors
        11: BLOBS,  # graphs
        13: BLOB,  # doc_string
        20: INT,  # type
    },
)
TENSOR = message(
    "a tensor",
    {
        1: INTS,  # dims
        2: INT,  # data_type
        4: FLOATS,  # float_data
        5: INTS,  # int32_data
        7: INTS,  # int64_data
        8: BLOB,  # name
        9: BLOB,  # raw_data
        10: DOUBLES,  # double_data
        11: INTS,  # uint64_data
        12: BLOB,  # doc_string
        13: BLOBS,  # external_data
        14: INT,  # data_location
        16: BLOBS,  # metadata_props
    },
)
ENTRY = message("an entry of external_data", {1: BLOB, 2: BLOB})  # key, value


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
    except Refused as refused:
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


class _Reader(WireReader):
    """Goes through the messages of one file."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, MAX_FIELDS)
        self.found = OnnxFile()

    def model(self) -> None:
        graph = None
        for number, start, end in self.walk(0, len(self.data), MODEL):
            if number == 1 and not 3 <= start <= MAX_IR_VERSION:
                raise Refused(f"IR version {start}, wants 3 to {MAX_IR_VERSION}")
            if number == 8:
                self.opset(start, end)
            elif number == 7:
                graph = (start, end)
        if graph is None:
            raise Refused("no ONNX graph in it")
        if not self.found.opset:
            raise Refused("no version of the standard operators")
        self.graph(*graph, depth=1)

    def opset(self, start: int, end: int) -> None:
        domain, version = b"", 0
        for number, a, b in self.walk(start, end, OPSET):
            if number == 1:
                domain = self.data[a:b]
            else:
                version = a
        self.check_domain(domain)
        if self.found.opset or not 1 <= version <= 1000:
            raise Refused(f"opset {version}, wants one version of the standard operators")
        self.found.opset = version

    def check_domain(self, domain: bytes) -> None:
        if domain not in DOMAINS:
            raise Refused(f"operators of domain {_text(domain)}, wants standard ONNX only")

    def graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Refused(f"graphs within graphs, over {MAX_DEPTH} deep")
        for number, a, b in self.walk(start, end, GRAPH):
            if number == 1:
                self.node(a, b, depth)
            elif number == 5:
                self.tensor(a, b)

    def node(self, start: int, end: int, depth: int) -> None:
        self.found.nodes += 1
        for number, a, b in self.walk(start, end, NODE):
            if number == 5:
                self.attribute(a, b, depth)
            elif number == 7:
                self.check_domain(self.data[a:b])

    def attribute(self, start: int, end: int, depth: int) -> None:
        for number, a, b in self.walk(start, end, ATTRIBUTE):
            if number in (5, 10):
                self.tensor(a, b)
            elif number in (6, 11):
                self.graph(a, b, depth + 1)

    def tensor(self, start: int, end: int) -> None:
        name, kind, external, embedded = b"", 0, False, -1
        shape: list[int] = []
        entries: list[tuple[int, int]] = []
        for number, a, b in self.walk(start, end, TENSOR):
            if number == 1:
                shape += [a] if b < 0 else self.packed(a, b)
                if len(shape) > MAX_RANK:
                    raise Refused(f"tensor {_text(name)}: over {MAX_RANK} dimensions")
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
                    raise Refused(f"tensor {_text(name)}: data_location {a}, wants 0 or 1")
            elif number in (4, 5, 7, 10, 11):
                embedded = max(embedded, 0)
        if kind not in ITEM_SIZES:
            raise Refused(f"tensor {_text(name)}: data type {kind} is not known")
        dtype, item = ITEM_SIZES[kind]
        length = item * math.prod(shape)
        if length > MAX_SIZE or any(size > MAX_SIZE for size in shape):
            raise Refused(f"tensor {_text(name)}: a shape of {length} bytes")
        if not external:
            if entries:
                raise Refused(f"tensor {_text(name)}: external data that is not used")
            if embedded > 0 and embedded != length:
                raise Refused(f"tensor {_text(name)}: {embedded} bytes, its shape wants {length}")
            if math.prod(shape) > end - start:  # an element takes a byte at least
                raise Refused(f"tensor {_text(name)}: fewer elements than its shape wants")
            return
        if embedded >= 0:
            raise Refused(f"tensor {_text(name)}: data both in the file and outside")
        location, offset = self.place(entries, name, length)
        tensor = ExternalTensor(
            name.decode("utf-8", "replace"), dtype, tuple(shape), location, offset, length
        )
        self.found.external.append(tensor)

    def place(self, entries: list[tuple[int, int]], name: bytes, wanted: int) -> tuple[str, int]:
        """Location and offset of external data, whose length must be `wanted`."""
        found: dict[bytes, bytes] = {}
        for start, end in entries:
            pair = {n: self.data[a:b] for n, a, b in self.walk(start, end, ENTRY)}
            key = pair.get(1, b"")
            if key not in (b"location", b"offset", b"length") or key in found:
                raise Refused(
                    f"tensor {_text(name)}: external data with {_text(key)}, wants location, "
                    "offset and length, each once"
                )
            found[key] = pair.get(2, b"")
        numbers = (found.get(b"offset", b"0"), found.get(b"length", b""))
        if not all(digits.isdigit() and len(digits) <= 15 for digits in numbers):
            raise Refused(f"tensor {_text(name)}: offset and length want whole numbers")
        if int(numbers[1]) != wanted:
            raise Refused(
                f"tensor {_text(name)}: {int(numbers[1])} bytes, its shape wants {wanted}"
            )
        try:
            return found.get(b"location", b"").decode(), int(numbers[0])
        except UnicodeDecodeError:
            raise Refused(f"tensor {_text(name)}: a location that is no text") from None

    def packed(self, position: int, end: int) -> list[int]:
        """Dimensions, as far as their number is allowed."""
        values: list[int] = []
        while position < end and len(values) <= MAX_RANK:
            value, position = self.varint(position, end)
            values.append(value)
        return values


def _text(name: bytes) -> str:
    return shown(name.decode("utf-8", "replace"))

"""The wire format of protocol buffers: a strict reader, and the little writing we need.

A message is read by a table of the fields it may have. What the table does not have is refused, and
so is a field twice that may come once: two readers of the same bytes cannot then disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are always refused

# What a field may be: its wire types, and whether it may come more than once. Plain numbers that
# repeat may also come packed, as bytes.
FieldKind = tuple[tuple[int, ...], bool]
INT: FieldKind = ((VARINT,), False)
INTS: FieldKind = ((VARINT, BYTES), True)
FLOAT: FieldKind = ((FIXED32,), False)
FLOATS: FieldKind = ((FIXED32, BYTES), True)
DOUBLES: FieldKind = ((FIXED64, BYTES), True)
BLOB: FieldKind = ((BYTES,), False)  # a string, bytes or a message
BLOBS: FieldKind = ((BYTES,), True)


class Refused(Exception):
    """Why a message is not read."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message's name for people, and its tags: number << 3 | wire type -> may it repeat."""

    name: str
    tags: Mapping[int, bool]


def message(name: str, fields: Mapping[int, FieldKind]) -> Message:
    """The table of a message from its fields: number -> kind."""
    tags = {n << 3 | wire: many for n, (wires, many) in fields.items() for wire in wires}
    return Message(name, tags)


class WireReader:
    """Reads the messages of one file; positions are indices into `data`."""

    def __init__(self, data: bytes, max_fields: int) -> None:
        """A reader that refuses to go on after so many fields."""
        self.data = data
        self.max_fields = max_fields
        self._fields_left = max_fields

    def walk(self, position: int, end: int, message: Message) -> list[tuple[int, int, int]]:
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
                raise Refused(f"{message.name} has field {number} (type {tag & 7}), not known")
            if not many:
                if seen >> number & 1:
                    raise Refused(f"{message.name} has field {number} twice")
                seen |= 1 << number
            elif len(fields) > self._fields_left:
                raise Refused(f"over {self.max_fields} fields")
            wire = tag & 7
            if wire == BYTES:
                length = data[position] if position < end else 0x80
                position += 1
                if length >= 0x80:
                    length, position = self.varint(position - 1, end)
                fields.append((number, position, position + length))
                position += length
            elif wire == VARINT:
                value, position = self.varint(position, end)
                fields.append((number, value, -1))
            else:
                fields.append((number, position, -1))
                position += 4 if wire == FIXED32 else 8
        if position > end:
            raise Refused(f"{message.name} is cut short")
        self._fields_left -= len(fields)
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
        raise Refused("a number is cut short or too long")


def varint(value: int) -> bytes:
    """The bytes of a number; a negative one is written as 64 bits."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def int_field(number: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content

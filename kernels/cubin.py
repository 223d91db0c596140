"""What a compiled kernel costs, read from the cubin itself.

A cubin is an ELF file. `.nv.info` holds, for each kernel, its registers and stack frame;
`.nv.info.<kernel>` the parameters; `.nv.shared.<kernel>` is as large as its static shared memory.
The attribute numbers are those that `cuobjdump -elf` names.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")

# Formats of an attribute, and the attributes.
_NO_VALUE, _BYTE, _HALF, _SIZED = 1, 2, 3, 4
_FRAME_SIZE = 0x11
_REGISTERS = 0x2F
_PARAMETER = 0x17


@dataclass(frozen=True, slots=True)
class Facts:
    """What one kernel needs of a chip."""

    registers: int
    frame_bytes: int  # of stack a thread: spills and local arrays lie there
    shared_bytes: int  # static
    parameters: tuple[tuple[int, int], ...]  # offset and size in the parameter block


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    size: int
    data: bytes
    linked: int


def facts(cubin: bytes, kernel: str) -> Facts:
    """The facts of one kernel; raises ValueError where the bytes are no cubin with that kernel."""
    try:
        return _facts(cubin, kernel)
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"the cubin of {kernel} is damaged: {error}") from None


def _facts(cubin: bytes, kernel: str) -> Facts:
    sections = list(_sections(cubin))
    named = {section.name: section for section in sections}
    if ".nv.info" not in named or f".nv.info.{kernel}" not in named:
        raise ValueError(f"this is no cubin with a kernel {kernel}")
    symbol = _symbol(sections, kernel)
    registers = frame = None
    for attribute, value in _attributes(named[".nv.info"].data):
        if attribute in (_REGISTERS, _FRAME_SIZE) and len(value) == 8:
            index, number = struct.unpack("<II", value)
            if index == symbol and attribute == _REGISTERS:
                registers = number
            elif index == symbol:
                frame = number
    if registers is None or frame is None:
        raise ValueError(f"the cubin does not say what {kernel} needs")
    parameters = []
    for attribute, value in _attributes(named[f".nv.info.{kernel}"].data):
        if attribute == _PARAMETER:
            _, _, offset, packed = struct.unpack("<IHHI", value)
            parameters.append((offset, packed >> 18))
    shared = named.get(f".nv.shared.{kernel}")
    return Facts(registers, frame, shared.size if shared else 0, tuple(sorted(parameters)))


def _sections(cubin: bytes) -> Iterator[_Section]:
    header = _HEADER.unpack_from(cubin)
    if header[0][:4] != b"\x7fELF":
        raise ValueError("this is no cubin: it does not start as an ELF file")
    table, each, count, names_index = header[6], header[11], header[12], header[13]
    raw = [_SECTION.unpack_from(cubin, table + i * each) for i in range(count)]
    names_at = raw[names_index][4]
    for name, kind, _, _, offset, size, link, _, _, _ in raw:
        end = cubin.index(b"\0", names_at + name)
        text = cubin[names_at + name : end].decode()
        data = b"" if kind == 8 else cubin[offset : offset + size]  # 8: takes no room in the file
        yield _Section(text, size, data, link)


def _symbol(sections: list[_Section], kernel: str) -> int:
    """The number of a kernel's symbol."""
    for table in sections:
        if table.name == ".symtab":
            names = sections[table.linked].data
            for index, (name, *_) in enumerate(_SYMBOL.iter_unpack(table.data)):
                if names[name : names.index(b"\0", name)].decode() == kernel:
                    return index
    raise ValueError(f"this is no cubin with a kernel {kernel}")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _SIZED:
            yield attribute, data[at : at + size]
            at += size
        elif form not in (_NO_VALUE, _BYTE, _HALF):
            raise ValueError(f"an attribute of unknown form {form} in the cubin")

"""Reading a cubin: what a damaged one says."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.kernels.cubin import Facts, facts


def section(kind: int, name: int, offset: int, size: int, link: int = 0) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, 0, 0, 0)


def made(registers: int = 40, frame: int = 16, shared: int = 96) -> bytes:
    """A cubin with one kernel `k` of two parameters, as the assembler lays it out."""
    names = b"\0.strtab\0.symtab\0.nv.info\0.nv.info.k\0.nv.shared.k\0"
    strings = b"\0k\0"
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0) + struct.pack("<IBBHQQ", 1, 18, 0, 1, 0, 64)
    info = struct.pack("<BBHII", 4, 0x2F, 8, 1, registers)
    info += struct.pack("<BBHII", 4, 0x11, 8, 1, frame)
    own = struct.pack("<BBH", 3, 0x50, 0)  # an attribute without a block
    for ordinal, (offset, size) in enumerate(((8, 4), (0, 8))):
        own += struct.pack("<BBHIHHI", 4, 0x17, 12, 0, ordinal, offset, size << 18 | 0x1F000)
    bodies = [names, strings, symbols, info, own]
    offsets, at = [], 64
    for body in bodies:
        offsets.append(at)
        at += len(body)
    where = {
        text: names.index(text.encode() + b"\0")
        for text in (".strtab", ".symtab", ".nv.info", ".nv.info.k", ".nv.shared.k")
    }
    table = section(0, 0, 0, 0)
    table += section(3, 0, offsets[0], len(names))
    table += section(3, where[".strtab"], offsets[1], len(strings))
    table += section(2, where[".symtab"], offsets[2], len(symbols), link=2)
    table += section(0x70000000, where[".nv.info"], offsets[3], len(info))
    table += section(0x70000000, where[".nv.info.k"], offsets[4], len(own))
    table += section(8, where[".nv.shared.k"], at, shared)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1" + bytes(9), 2, 190, 1, 0, 0, at, 0, 64, 0, 0, 64, 7, 1,
    )  # fmt: skip
    return header + b"".join(bodies) + table


def test_facts_are_read() -> None:
    assert facts(made(), "k") == Facts(40, 16, 96, ((0, 8), (8, 4)))


def test_another_kernel_is_not_there() -> None:
    with pytest.raises(ValueError, match="no cubin with a kernel other"):
        facts(made(), "other")


@pytest.mark.parametrize("raw", [b"", b"\x7fELF", b"PTX" * 100, bytes(200)])
def test_what_is_no_cubin_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="cubin"):
        facts(raw, "k")


@given(st.integers(0, len(made()) - 1), st.integers(0, 255), st.integers(0, len(made())))
@settings(max_examples=200, deadline=None)
def test_a_damaged_cubin_is_read_or_refused(at: int, byte: int, length: int) -> None:
    damaged = bytearray(made())
    damaged[at] = byte
    for raw in (bytes(damaged), made()[:length]):
        with contextlib.suppress(ValueError):
            assert isinstance(facts(raw, "k"), Facts)

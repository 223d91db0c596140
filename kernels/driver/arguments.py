"""A kernel's parameters: their table, and values laid out as the driver wants them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_rt.kernels.driver.errors import Misuse

Kind = Literal["pointer", "int32", "uint32", "int64", "float32", "tensor_map"]
Value = int | float | bytes

TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64

_SCALARS: dict[str, Any] = {
    "pointer": ctypes.c_uint64,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}
_RANGES = {
    "pointer": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kernel; a pointer also says what it points at."""

    name: str
    kind: Kind
    alignment: int = 1  # bytes; what the kernel's loads and stores through this pointer assume
    nullable: bool = False

    @property
    def nbytes(self) -> int:
        """Size in the kernel's parameter block."""
        if self.kind == "tensor_map":
            return TENSOR_MAP_BYTES
        return ctypes.sizeof(_SCALARS[self.kind])

    def check(self, value: Value, kernel: str) -> None:
        """Raise Misuse where the value does not fit this parameter."""
        what = f"{kernel}: {self.name}"
        if self.kind == "tensor_map":
            if not isinstance(value, bytes) or len(value) != TENSOR_MAP_BYTES:
                raise Misuse(f"{what} is no tensor map of {TENSOR_MAP_BYTES} bytes")
            return
        if isinstance(value, bytes):
            raise Misuse(f"{what} is bytes, {self.kind} is wanted")
        if self.kind == "float32":
            return
        low, high = _RANGES[self.kind]
        if not isinstance(value, int) or not low <= value <= high:
            raise Misuse(f"{what}={value!r} is no {self.kind}")
        if self.kind == "pointer":
            if value == 0 and not self.nullable:
                raise Misuse(f"{what} is a null pointer")
            if value % self.alignment:
                raise Misuse(f"{what}={value:#x} is not aligned to {self.alignment} bytes")


class Packed:
    """Argument values in memory and the array of pointers to them that a launch is given."""

    def __init__(self, kernel: str, parameters: Sequence[Parameter], values: Sequence[Value]):
        if len(values) != len(parameters):
            raise Misuse(f"{kernel}: {len(values)} arguments given, {len(parameters)} wanted")
        self.values = tuple(values)
        self._cells: list[Any] = []
        for parameter, value in zip(parameters, values, strict=True):
            parameter.check(value, kernel)
            self._cells.append(_cell(parameter, value))
        self._pointers = (ctypes.c_void_p * max(len(values), 1))(
            *(ctypes.addressof(cell) for cell in self._cells)
        )

    @property
    def address(self) -> int:
        """Where the array of pointers lies; valid while this object lives."""
        return ctypes.addressof(self._pointers)


def _cell(parameter: Parameter, value: Value) -> Any:
    if not isinstance(value, bytes):
        return _SCALARS[parameter.kind](value)
    raw = (ctypes.c_char * (TENSOR_MAP_BYTES + TENSOR_MAP_ALIGNMENT))()
    skip = -ctypes.addressof(raw) % TENSOR_MAP_ALIGNMENT
    cell = (ctypes.c_char * TENSOR_MAP_BYTES).from_buffer(raw, skip)
    cell.raw = value
    return cell

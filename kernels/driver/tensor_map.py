"""What the tensor memory accelerator (sm_90 and newer) is told of a tensor: a map of 128 bytes.

A kernel gets maps by value, as parameters of kind "tensor_map". A device encodes them
(`Device.tensor_map`); the driver's own format is not documented, so the simulator has a plain one.
"""

import struct
from dataclasses import dataclass
from typing import Literal

from diffusion_rt.kernels.driver.arguments import TENSOR_MAP_BYTES
from diffusion_rt.kernels.driver.errors import Misuse

MOST_DIMENSIONS = 5
MOST_BOX = 256  # elements of a box along a dimension
ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

_PLAIN = struct.Struct("<8sIIQ5Q4Q5II8x")
_MAGIC = b"TILE MAP"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """A tensor in device memory and the box of it that one copy brings to shared memory.

    Dimensions go from the innermost outwards. What a box covers outside the tensor is filled with
    zeros. Raises Misuse where a rule of `cuTensorMapEncodeTiled` is broken.
    """

    name: str  # for messages
    dtype: Literal["float16", "bfloat16", "float32"]
    address: int
    sizes: tuple[int, ...]  # elements
    strides: tuple[int, ...]  # bytes between neighbours of every dimension but the innermost
    box: tuple[int, ...]  # elements
    swizzle: Literal[0, 32, 64, 128] = 128  # bytes over which chunks of 16 are exchanged

    def __post_init__(self) -> None:
        rank = len(self.sizes)
        self._require(1 <= rank <= MOST_DIMENSIONS, f"{rank} dimensions, 1 to 5 are allowed")
        self._require(
            len(self.strides) == rank - 1 and len(self.box) == rank,
            f"{len(self.strides)} strides and a box of {len(self.box)} for {rank} dimensions",
        )
        self._require(
            self.address > 0 and self.address % 16 == 0,
            f"address {self.address:#x} is no multiple of 16",
        )
        for size in self.sizes:
            self._require(1 <= size <= 2**32, f"a dimension of {size}, 1 to 2**32 are allowed")
        for stride in self.strides:
            self._require(
                0 < stride < 2**40 and stride % 16 == 0,
                f"a stride of {stride} bytes; multiples of 16 under 2**40 are allowed",
            )
        for side in self.box:
            self._require(1 <= side <= MOST_BOX, f"a box side of {side}, 1 to 256 are allowed")
        inner = self.box[0] * ELEMENT_BYTES[self.dtype]
        self._require(inner % 16 == 0, f"box rows of {inner} bytes, multiples of 16 are allowed")
        self._require(
            self.swizzle == 0 or inner <= self.swizzle,
            f"box rows of {inner} bytes are longer than the swizzle of {self.swizzle}",
        )

    @property
    def nbytes(self) -> int:
        """From the first element to the end of the last."""
        reach = sum(
            (size - 1) * stride for size, stride in zip(self.sizes[1:], self.strides, strict=True)
        )
        return reach + self.sizes[0] * ELEMENT_BYTES[self.dtype]

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Misuse(f"tensor map of {self.name}: {otherwise}")


def plain(described: TensorMap) -> bytes:
    """The simulator's 128 bytes; `sources/hopper_host.h` reads them."""
    missing = MOST_DIMENSIONS - len(described.sizes)
    packed = _PLAIN.pack(
        _MAGIC,
        len(described.sizes),
        ELEMENT_BYTES[described.dtype],
        described.address,
        *described.sizes,
        *(1,) * missing,
        *described.strides,
        *(0,) * missing,
        *described.box,
        *(1,) * missing,
        described.swizzle,
    )
    assert len(packed) == TENSOR_MAP_BYTES
    return packed


def plain_address(encoded: bytes) -> int:
    """Where the tensor of a plain map lies; 0 where the bytes are no plain map."""
    magic, _, _, address, *_ = _PLAIN.unpack(encoded)
    return int(address) if magic == _MAGIC else 0

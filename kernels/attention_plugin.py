"""Attention as TensorRT launches it: the catalogue's rows, and the numbers of one launch.

TensorRT gives a kernel of an ahead-of-time plugin the inputs, some integers and the output, in this
order, and nothing else. So the scale comes as the bits of a float32, and what a launch needs is
written as arithmetic over the tensors' sizes, which TensorRT evaluates for each shape it runs: the
functions here take integers or whatever else knows `*`.
"""

import functools
import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from diffusion_rt.kernels.attention import ALIGNMENT
from diffusion_rt.kernels.attention_tactics import STREAMS, Stream, instructions
from diffusion_rt.kernels.compile import find_compiler
from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.variant import Variant

KERNEL = "attention_plugin"
SHARED_BYTES = 48 * 1024  # what every chip gives a block without an opt-in

INTEGERS = (
    "queries",
    "keys",
    "head_size",
    "query_token",
    "query_head",
    "key_token",
    "key_head",
    "scale_bits",
)
PARAMETERS = (
    *(Parameter(name, "pointer", ALIGNMENT) for name in ("q", "k", "v")),
    *(Parameter(name, "int32") for name in INTEGERS),
    Parameter("out", "pointer", ALIGNMENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The heads of one attention, and whether each tensor's tokens lie by head.

    By head: [batch, heads, tokens, head_size], else [batch, tokens, heads, head_size].
    """

    heads: int
    head_size: int
    scale_bits: int  # a float32's
    query_by_head: bool
    key_by_head: bool

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_size < 8 or self.head_size % 8:
            raise Misuse(
                f"{KERNEL}: heads={self.heads}, head_size={self.head_size}; at least one head of a "
                "multiple of 8 is wanted"
            )
        if not 0 < self.scale_bits < 0x7F800000:
            raise Misuse(f"{KERNEL}: scale_bits={self.scale_bits} are no finite number above 0")
        streams(self.head_size)

    def integers(self, queries: Any, keys: Any) -> tuple[Any, ...]:
        """INTEGERS in their order, for numbers of tokens that may be symbols."""
        return (
            queries,
            keys,
            self.head_size,
            *self._strides(self.query_by_head, queries),
            *self._strides(self.key_by_head, keys),
            self.scale_bits,
        )

    def _strides(self, by_head: bool, tokens: Any) -> tuple[Any, Any]:
        if by_head:
            return self.head_size, tokens * self.head_size
        return self.heads * self.head_size, self.head_size


def scale_bits(scale: float) -> int:
    """The bits of a scale, rounded to float32."""
    bits: int = struct.unpack("<i", struct.pack("<f", scale))[0]
    return bits


def streams(head_size: int) -> tuple[Stream, ...]:
    """The ways to run heads of a size; raises Misuse where there is none."""
    fitting = [stream for stream in STREAMS if stream.head >= head_size]
    if not fitting:
        most = max(stream.head for stream in STREAMS)
        raise Misuse(f"{KERNEL}: heads of {head_size}; up to {most} are taken")
    head = min(stream.head for stream in fitting)
    return tuple(stream for stream in fitting if stream.head == head)


def variant(stream: Stream) -> Variant:
    """The catalogue's row."""
    return Variant(
        name=f"{KERNEL}_{stream.head}{stream.suffix}.float16",
        kernel=KERNEL,
        source="attention_plugin.cu",
        constants=(("ELEMENT", "half"), *stream.constants),
        parameters=PARAMETERS,
        registers=stream.registers,
        shared_bytes=stream.shared_bytes,
        threads=stream.warps * 32,
        instructions=instructions("float16"),
    )


VARIANTS = tuple(variant(stream) for stream in STREAMS)


@functools.cache
def ptx(row: Variant) -> bytes:
    """The kernel for TensorRT's assembler; raises CompileError where there is no compiler."""
    return find_compiler().ptx(row)


def sha256() -> str:
    """The hash of every image that TensorRT may be given; raises CompileError."""
    digest = hashlib.sha256()
    for row in VARIANTS:
        image = ptx(row)
        digest.update(len(image).to_bytes(8, "little") + image)
    return digest.hexdigest()

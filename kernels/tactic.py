"""A tactic: one way to run a product or a convolution; what to launch, and with which arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from diffusion_rt.kernels.driver.arguments import Value
from diffusion_rt.kernels.driver.launch import Launch, Limits

Encode = Callable[[Any], bytes]
"""Makes the 128 bytes of a tensor map; only tactics with TMA ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """Where an operation's arrays lie: addresses on the device, 0 for what it does not have."""

    first: int  # the source, or the first of two side by side
    second: int = 0
    weight: int
    bias: int = 0
    vector: int = 0
    residual: int = 0
    output: int
    partial: int = 0  # Tactic.partial_bytes of scratch memory, 16-byte aligned
    arrived: int = 0  # Tactic.counters uint32, zero before the first launch, and after each


class Tactic(Protocol):
    """One way to run one operation, of given sizes."""

    @property
    def name(self) -> str:
        """What a cache of measured tactics knows it by; the same for any operation."""

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""

    @property
    def launch(self) -> Launch:
        """Grid, block and dynamic shared memory."""

    @property
    def partial_bytes(self) -> int:
        """Scratch memory for sums that several blocks share, or 0."""

    @property
    def counters(self) -> int:
        """How many uint32 counters it wants, or 0."""

    def cycles(self, limits: Limits) -> float:
        """How long it takes on a chip, by the model that tells the likely fastest."""

    def arguments(self, operands: Operands, encode: Encode | None = None) -> tuple[Value, ...]:
        """The kernel's arguments, in the order of its parameters."""

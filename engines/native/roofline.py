"""What a plan costs: operations, kernels, FLOPs and bytes by kind, and a chip's time by its roof.

An operation takes as long as its arithmetic at the chip's full rate, its exponentials or its bytes
at full bandwidth, whichever is longest, and every kernel a gap (Williams et al., "Roofline", 2009).
Each byte is counted once for every kernel that reads or writes it, as if no cache kept it. FLOPs
are those of the model, as everybody counts them; time is that of the arithmetic that is done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffusion_rt.engines.native.chips import GAP, Roof
from diffusion_rt.engines.native.plan import Operation, Plan


@dataclass(frozen=True, slots=True)
class Cost:
    """Of some operations, together."""

    operations: int = 0
    kernels: int = 0
    flops: int = 0
    moved: int = 0  # bytes
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Of both."""
        return Cost(
            self.operations + other.operations,
            self.kernels + other.kernels,
            self.flops + other.flops,
            self.moved + other.moved,
            self.seconds + other.seconds,
        )


def cost(plan: Plan, operation: Operation, roof: Roof, kernels: int) -> Cost:
    """Of one operation, which launches so many kernels."""
    moved = plan.bytes_moved(operation)
    busy = max(
        operation.flops_done / roof.rate(plan.dtype),
        operation.exponentials / roof.exponentials,
        moved / roof.bandwidth,
    )
    return Cost(1, kernels, operation.flops, moved, busy + kernels * GAP)


def by_kind(plan: Plan, roof: Roof, kernels: Sequence[int]) -> dict[str, Cost]:
    """The cost of each kind of operation, the longest first; `kernels` is by operation."""
    found: dict[str, Cost] = {}
    for operation, count in zip(plan.operations, kernels, strict=True):
        kind = type(operation).__name__
        found[kind] = found.get(kind, Cost()) + cost(plan, operation, roof, count)
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def total(costs: Iterable[Cost]) -> Cost:
    """All together."""
    return sum(costs, Cost())

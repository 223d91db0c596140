"""What many measurements of one thing come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from diffusion_rt.engines.typed_json import Between

Amount = Annotated[float, Between(0, 1e18)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How many values there were and where they lie, in the unit of the values."""

    n: Annotated[int, Between(1, 1 << 40)]
    p50: Amount
    p90: Amount
    p99: Amount
    min: Amount
    max: Amount


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one finite value."""
    ordered = sorted(values)
    return Spread(
        n=len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        min=ordered[0],
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the ascending values lie, linear between two of them."""
    assert ordered, "no values"
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    share = place - low
    # This form never leaves the two values it lies between, whatever is rounded.
    return ordered[low] if share == 0 else _between(ordered[low], ordered[high], share)


def _between(low: float, high: float, share: float) -> float:
    return min(max(low + (high - low) * share, low), high)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return percentile(sorted(values), 50)

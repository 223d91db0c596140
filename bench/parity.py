"""The gate before every clock: who draws something else than the reference is not timed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import Fault

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far from the reference, diffusers in float32, a contender may be.

    The limits are those of float32 arithmetic in another order: a picture whose latents differ by
    less than 1e-3 differs in no pixel by more than a rounding.
    """

    levels: int = 1  # of 255, of any pixel
    relative: float = 1e-3  # of any other array: largest difference to largest value

    @classmethod
    def twice(cls, wanted: Arrays, plain: Arrays) -> Self:
        """Twice as far as `plain` is, diffusers in the contenders' own arithmetic, or the above.

        Raises Fault where that is not finite, and so measures nothing.
        """
        least = cls()
        levels, relative = float(least.levels), least.relative
        for name, reference in wanted.items():
            found = plain[name]
            if found.shape != reference.shape or not np.isfinite(found).all():
                raise Fault(f"diffusers' own {name} are not finite; nothing can be held to them")
            difference = float(np.abs(found.astype(np.float64) - reference).max())
            if reference.dtype == np.uint8:
                levels = max(levels, 2 * difference)
            else:
                relative = max(relative, 2 * difference / float(np.abs(reference).max()))
        return cls(levels=ceil(levels), relative=relative)

    def refusal(self, wanted: Arrays, got: Arrays) -> str | None:
        """Why a contender may not be timed; None where it may.

        Raises Fault where the reference itself proves nothing, being flat or not finite.
        """
        for name, reference in wanted.items():
            if not np.isfinite(reference).all() or reference.std() < 1e-6:
                raise Fault(f"the reference's {name} are flat or not finite and prove nothing")
            if name not in got:
                return f"gives no {name}"
            if (wrong := self._difference(reference, got[name])) is not None:
                return f"{name} {wrong}"
        return None

    def share(self, wanted: Arrays, got: Arrays) -> float:
        """The largest difference of arrays that were not refused, in units of what is allowed."""
        worst = 0.0
        for name, reference in wanted.items():
            difference = float(np.abs(got[name].astype(np.float64) - reference).max())
            if reference.dtype == np.uint8:
                worst = max(worst, difference / self.levels)
            else:
                worst = max(worst, difference / float(np.abs(reference).max()) / self.relative)
        return worst

    def _difference(self, wanted: NDArray[Any], got: NDArray[Any]) -> str | None:
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            return f"are {got.dtype} {list(got.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        if not np.isfinite(got).all():
            return "are not finite"
        difference = float(np.abs(got.astype(np.float64) - wanted).max())
        if wanted.dtype == np.uint8:
            far = difference > self.levels
            return f"differ by {difference:.0f} of 255, at most {self.levels}" if far else None
        relative = difference / float(np.abs(wanted).max())
        far = relative > self.relative
        return (
            f"differ by {relative:.1e} of the largest, at most {self.relative:g}" if far else None
        )

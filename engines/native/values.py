"""What a value of a graph is while the graph is lowered."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.native.plan import Source, View


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers in a buffer, under the graph's own shape.

    What a convolution does by itself is only noted: `beside`, the rest of the channels; `padding`
    (top, left, bottom, right), a rim of zeros; `enlarged`, the height and width to repeat pixels
    to. A view then is that of the values as they lie in memory.
    """

    view: View
    beside: View | None = None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    enlarged: tuple[int, int] | None = None

    @property
    def plain(self) -> bool:
        """Whether the view is all there is to say."""
        return self.beside is None and self.enlarged is None and not any(self.padding)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of the checkpoint, perhaps transposed."""

    source: Source
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as the graph sees it."""
        return self.source.shape[::-1] if self.transposed else self.source.shape


@dataclass(frozen=True, slots=True)
class Looked:
    """Rows of a table, one for each id."""

    table: Parameter
    ids: View


@dataclass(frozen=True, slots=True)
class Positions:
    """The first rows of a table."""

    table: Parameter


@dataclass(frozen=True, slots=True)
class Matches:
    """Where an id is `token`; the ids themselves where that is None."""

    ids: View
    token: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """Of each image the place of its first largest number."""

    among: Matches


@dataclass(frozen=True, slots=True)
class Angles:
    """Every number times every frequency."""

    source: View  # float32
    frequencies: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Waves:
    """Sines ("s") and cosines ("c") of angles, side by side in this order."""

    angles: Angles
    order: str


Value = Tensor | Parameter | Looked | Positions | Matches | Found | Angles | Waves

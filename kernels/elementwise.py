"""`elementwise`: a function of one or two strided arrays, in float32.

With `copy` it is every transpose, cast, slice, and widening with zeros, between float16, bfloat16
and float32.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels import epilogue
from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.variant import Variant

Function = Literal["copy", "add", "multiply", "sigmoid", "silu", "gelu", "quick_gelu", "clip"]
FUNCTIONS: tuple[Function, ...] = (
    "copy",
    "add",
    "multiply",
    "sigmoid",
    "silu",
    "gelu",
    "quick_gelu",
    "clip",
)
"""Their place is the number that the kernel knows them by."""

TYPES = ("float16", "bfloat16", "float32")
THREADS = 256
VECTOR = 8
DIMENSIONS = 4
MOST_STRIDE = 2**31  # an int32 of the kernel


def _of(name: str) -> tuple[Parameter, ...]:
    strides = (Parameter(f"{name}_stride{i}", "int32") for i in range(DIMENSIONS))
    return (Parameter(f"{name}_type", "int32"), *strides)


def _parameters(alignments: tuple[int, int]) -> tuple[Parameter, ...]:
    """The first alignment is that of what is read, the second that of what is written."""
    return (
        Parameter("first", "pointer", alignment=alignments[0]),
        Parameter("second", "pointer", alignment=alignments[0], nullable=True),
        Parameter("output", "pointer", alignment=alignments[1]),  # may be a source
        Parameter("function", "int32"),
        Parameter("low", "float32"),
        Parameter("high", "float32"),
        *(Parameter(f"size{i}", "int32") for i in range(DIMENSIONS)),  # of the output
        Parameter("valid", "int32"),  # of the last dimension: the rest is zero
        *_of("first"),
        *_of("second"),
        *_of("output"),
    )


# A repeated element may lie anywhere, so only what is written must lie at a vector's place here.
VARIANTS = tuple(
    Variant(
        name=f"elementwise_{vector}",
        kernel="elementwise",
        source="elementwise.cu",
        constants=(("VECTOR", str(vector)),),
        parameters=_parameters(alignments),
        registers=64,
        overlaps=True,
    )
    for vector, alignments in ((1, (2, 2)), (VECTOR, (2, 16)))
)


@dataclass(frozen=True, slots=True)
class Strided:
    """How an array lies in memory: its type, and elements from one to the next of each dimension.

    `offset` counts elements from a place that 16 bytes divide to the first.
    """

    dtype: str
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """output = function(sources), of up to four dimensions.

    add: sum of all sources and scalars; multiply: product of them; clip: between two scalars;
    the others take one source. `valid` is the size of the sources' last dimension where the
    output's is larger: zeros follow. Raises Misuse, naming it, where the kernel does not take it.
    """

    function: Function
    shape: tuple[int, ...]  # of the output
    sources: tuple[Strided, ...]
    output: Strided
    scalars: tuple[float, ...] = ()
    valid: int = 0  # 0 stands for all

    def __post_init__(self) -> None:
        function, shape = self.function, self.shape
        if function not in FUNCTIONS:
            raise Misuse(f"elementwise {function!r}; one of {', '.join(FUNCTIONS)}")
        most = 2 if function in ("add", "multiply") else 1
        scalars = {"add": None, "multiply": None, "clip": 2}.get(function, 0)
        if not 1 <= len(self.sources) <= most:
            raise Misuse(f"elementwise {function} of {len(self.sources)} arrays, 1 to {most}")
        if scalars is not None and len(self.scalars) != scalars:
            raise Misuse(f"elementwise {function} with {len(self.scalars)} numbers, {scalars}")
        if not 1 <= len(shape) <= DIMENSIONS or min(shape) < 1 or math.prod(shape) >= 2**39:
            raise Misuse(f"elementwise over {shape}; 1 to {DIMENSIONS} dimensions are wanted")
        if not 0 <= self.valid <= shape[-1]:
            raise Misuse(f"elementwise over {shape} of {self.valid}")
        for array in (*self.sources, self.output):
            if array.dtype not in TYPES:
                raise Misuse(f"elementwise over {array.dtype}; one of {', '.join(TYPES)}")
            if len(array.strides) != len(shape) or max(array.strides) >= MOST_STRIDE:
                raise Misuse(f"elementwise over {shape} with strides {array.strides}")

    @property
    def _width(self) -> int:
        """Elements of a thread: eight where neighbours lie so that eight are one load."""
        eight = self.shape[-1] % VECTOR == 0 and self.valid % VECTOR == 0
        for array in (*self.sources, self.output):
            *outer, last = array.strides
            dense = last == 1 and not any(n % VECTOR for n in (array.offset, *outer))
            eight = eight and (dense or (last == 0 and array is not self.output))
        return VECTOR if eight else 1

    @property
    def variant(self) -> str:
        """The kernel's row in the catalogue."""
        return f"elementwise_{self._width}"

    @property
    def launch(self) -> Launch:
        """One thread for each element, or for eight."""
        threads = math.prod(self.shape) // self._width
        return Launch(grid=(-(-threads // THREADS), 1, 1), block=(THREADS, 1, 1))

    def arguments(self, *, first: int, second: int = 0, output: int) -> tuple[Value, ...]:
        """Arguments in the order of the variant's parameters, from addresses."""
        missing = DIMENSIONS - len(self.shape)

        def place(array: Strided | None) -> tuple[int, ...]:
            if array is None:
                return (0,) * (1 + DIMENSIONS)
            return (TYPES.index(array.dtype), *(0,) * missing, *array.strides)

        match self.function:
            case "clip":
                low, high = self.scalars
            case "multiply":
                low, high = math.prod(self.scalars), 0.0
            case _:
                low, high = math.fsum(self.scalars), 0.0
        two = self.sources[1] if len(self.sources) == 2 else None
        return (
            *(first, second if two else 0, output),
            *(FUNCTIONS.index(self.function), low, high),
            *(1,) * missing,
            *self.shape,
            self.valid or self.shape[-1],
            *place(self.sources[0]),
            *place(two),
            *place(self.output),
        )


def reference(
    function: Function, *sources: NDArray[Any], scalars: tuple[float, ...] = ()
) -> NDArray[np.float64]:
    """The function of arrays of one shape, in float64."""
    x, *others = (source.astype(np.float64) for source in sources)
    match function:
        case "copy":
            return x
        case "add":
            return np.asarray(sum(others, x) + math.fsum(scalars))
        case "multiply":
            return np.asarray(math.prod(scalars) * x * math.prod(others))
        case "clip":
            low, high = scalars
            return np.asarray(np.clip(x, low, high))
        case "sigmoid":
            return epilogue.sigmoid(x)
        case "silu" | "gelu" | "quick_gelu":
            return epilogue.activate(x, function)

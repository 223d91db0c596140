"""A way to run an operation of a plan: kernels, grids and arguments.

What can be said from sizes alone stands in a `Way`; its `calls` puts in the addresses, again
whenever memory has moved. Most are kernels of our own; a library may have some beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from operator import methodcaller
from typing import Any, Protocol

from diffusion_rt.engines.errors import Fault
from diffusion_rt.engines.native import plan as p
from diffusion_rt.kernels.driver import Launch, Limits, Misuse
from diffusion_rt.kernels.driver.arguments import Value
from diffusion_rt.kernels.driver.interface import ALIGNMENT, Kernel, Stream
from diffusion_rt.kernels.tactic import Encode, Tactic
from diffusion_rt.kernels.variant import Variant


@dataclass(frozen=True, slots=True)
class Call:
    """One launch of one kernel."""

    variant: Variant
    launch: Launch
    arguments: tuple[Value, ...]


Enqueue = Callable[[Stream], Any]
"""Puts work on a stream; neither allocates nor waits, so that it can be captured."""

Load = Callable[[Variant], Kernel]


@dataclass(frozen=True, slots=True)
class LibraryCall:
    """Work that a library puts on a stream by itself, given the stream's handle."""

    enqueue: Enqueue


def launching(kernel: Kernel, launch: Launch, arguments: tuple[Value, ...]) -> Enqueue:
    """A launch as a function of the stream."""
    return methodcaller("launch", kernel, launch, arguments)


def enqueued(call: Call | LibraryCall, load: Load) -> Enqueue:
    """A call as a function of the stream, its kernel loaded."""
    if isinstance(call, LibraryCall):
        return call.enqueue
    return launching(load(call.variant), call.launch, call.arguments)


class Places(Protocol):
    """Where everything lies right now."""

    @property
    def scratch(self) -> int:
        """Memory that an operation writes and reads itself; the next one writes over it."""
        ...

    @property
    def counters(self) -> int:
        """uint32 numbers that are zero before and after every operation."""
        ...

    def view(self, view: p.View) -> int:
        """The address of a view's first element."""
        ...

    def weight(self, name: str) -> int:
        """The address of a weight."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run an operation of given sizes."""

    name: str  # of the tactic, the same on every chip
    variants: tuple[Variant, ...]  # our kernels; a library's has none
    scratch_bytes: int = 0
    counters: int = 0
    calls: Callable[[Places], tuple[Call | LibraryCall, ...]]
    tactic: Tactic | None = None  # of our own, where a model says how long it takes


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways to run an operation on a chip, the likely fastest first."""

    sizes: str  # equal for operations that run equally fast
    ways: tuple[Way, ...]


class LibraryFailed(Fault):
    """A library does not do what it said it could; without it our own kernels run."""


class Library(Protocol):
    """A library on a device that runs some operations."""

    @property
    def version(self) -> str:
        """Its name and version, such as cublaslt-130300."""
        ...

    def ways(self, operation: p.Operation, sizes: object) -> tuple[Way, ...]:
        """Its ways to run an operation, the likely fastest first; none where it cannot.

        `sizes` is what our own kernels are asked with: a gemm.Product, a conv.Convolution. The same
        sizes have the same ways, by name, as long as the version is the same and the residual lies
        where the output does in all or in none.
        """
        ...

    def close(self) -> None:
        """Give back what the library holds; no call of its ways may follow."""
        ...


@dataclass(frozen=True, slots=True)
class Chip:
    """What the choice of a way depends on."""

    limits: Limits
    encode: Encode | None = None  # makes tensor maps, on chips that have them
    libraries: tuple[Library, ...] = ()  # their ways come after ours, and are taken if measured
    plain: bool = False  # its driver takes no kernel with instructions of this very chip


def dtype_of(plan: p.Plan, *views: p.View) -> p.Arithmetic:
    """The arithmetic of a plan, which is the type of all these views."""
    for view in views:
        if view.dtype != plan.dtype:
            raise Misuse(f"{view.buffer} is {view.dtype} in a plan of {plan.dtype}")
    return plan.dtype


def row_stride(view: p.View) -> int:
    """Elements from one row (the last dimension) to the next; rows are evenly apart."""
    *sizes, columns = view.shape
    *strides, step = view.strides
    evenly = step == 1 or columns == 1
    stride = next((s for n, s in zip(sizes[::-1], strides[::-1], strict=True) if n > 1), columns)
    for place in range(len(sizes)):
        wanted = stride * prod(sizes[place + 1 :])
        evenly = evenly and (sizes[place] == 1 or strides[place] == wanted)
    if not evenly:
        raise Misuse(f"rows of {view.shape} with strides {view.strides}")
    return stride


def want(condition: bool, view: p.View) -> None:
    """Raise Misuse about a view that a kernel cannot take."""
    if not condition:
        raise Misuse(f"{view.shape} with strides {view.strides}")


def want_contiguous(*views: p.View) -> None:
    """Raise Misuse unless rows follow one another."""
    for view in views:
        want(row_stride(view) == view.shape[-1], view)


def rounded(nbytes: int) -> int:
    """Up to where the next buffer may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

"""What a CUDA device is to the engines: memory, streams, events, captured graphs, launches.

Two devices behave this way: the real one (`open_device`) and a simulator on the host
(`Simulator`), which keeps the driver's rules and breaks loudly. All work goes to a stream one has
made; nothing here uses the default stream. Errors are those of `errors.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.driver.tensor_map import TensorMap

ALIGNMENT = 256
"""Every allocation starts at a multiple of this many bytes."""


class Closing(Protocol):
    """Something that holds a driver's object; closing it twice does nothing.

    What derives from it is closed at the end of a `with`.
    """

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Span(Protocol):
    """Some bytes that the device can reach."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a buffer; it does not keep the buffer open."""

    address: int
    nbytes: int


def part(whole: Span, offset: int, nbytes: int) -> Part:
    """`nbytes` of `whole` from `offset`; raises Misuse where they reach outside."""
    if offset < 0 or nbytes < 0 or offset + nbytes > whole.nbytes:
        raise Misuse(f"bytes {offset} to {offset + nbytes} of a buffer of {whole.nbytes}")
    return Part(whole.address + offset, nbytes)


class Buffer(Span, Closing, Protocol):
    """Device memory at a fixed address."""


class HostBuffer(Span, Closing, Protocol):
    """Pinned host memory, the only host memory that copies take: others would block the host."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, to read once a copy to here is known to be done, and to write before one."""
        ...


class Event(Closing, Protocol):
    """A point in a stream. One never recorded counts as passed."""

    def done(self) -> bool:
        """Whether the stream has passed it; does not wait."""
        ...

    def synchronize(self) -> None:
        """Wait on the host, without spinning, until the stream has passed it."""
        ...

    def elapsed_ms(self, since: Any) -> float:
        """Milliseconds on the device from another event to this one; both made with `timed`."""
        ...


class Module(Closing, Protocol):
    """A compiled image on the device."""

    def kernel(self, name: str, parameters: Sequence[Parameter]) -> "Kernel":
        """One kernel of it, ready to launch (and to capture) without further loading."""
        ...


class Kernel(Protocol):
    """A kernel on the device."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> Sequence[Parameter]: ...


class Graph(Closing, Protocol):
    """Captured work: it replays with the addresses and values it was captured with."""

    def replay(self, stream: Any) -> None:
        """Enqueue all of it; neither allocates nor waits."""
        ...

    def update(self, stream: Any, enqueue: Callable[[], None]) -> None:
        """Capture again on `stream` and take over the new addresses and values.

        Raises Misuse where the work has another shape; the graph then stays as it was.
        """
        ...


class Stream(Closing, Protocol):
    """Work in order; none of these calls but `synchronize` waits for the device."""

    @property
    def handle(self) -> int:
        """The driver's address of it, for libraries that enqueue on their own."""
        ...

    def copy(self, destination: Span, source: Span) -> None:
        """Copy all of `source` to the start of `destination`; either may be pinned host memory."""
        ...

    def fill(self, destination: Span, byte: int) -> None:
        """Set every byte."""
        ...

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Value]) -> None:
        """Start a kernel. Arguments follow its parameter table; a pointer is an address."""
        ...

    def record(self, event: Any) -> None:
        """Put the event after all work enqueued so far."""
        ...

    def wait(self, event: Any) -> None:
        """Hold later work back until the event's last recorded point is passed."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Collect what `enqueue` puts on this stream, without running it.

        Inside, nothing may allocate, free, load or wait (Misuse); what it raises ends the capture.
        Another stream may take part: it waits for an event of this one, and this one for it.
        """
        ...

    def done(self) -> bool:
        """Whether all work is done; does not wait."""
        ...

    def synchronize(self) -> None:
        """Wait on the host for all work enqueued so far."""
        ...


class Pool(Closing, Protocol):
    """Device memory that is taken and given back in stream order, without stopping the device."""

    def allocate(self, nbytes: int, stream: Any) -> Buffer:
        """Memory that exists for work enqueued on `stream` from here on; close() gives it back.

        Closing is in the order of that stream too. Another stream that uses it waits for an event
        between.
        """
        ...

    def trim(self, keep: int = 0) -> None:
        """Give unused memory back to the device, all but `keep` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory in bytes, of all processes together."""

    free: int
    total: int


class Device(Closing, Protocol):
    """One GPU, or what stands for one. Closing it closes all that was made from it."""

    @property
    def name(self) -> str: ...

    @property
    def arch(self) -> int:
        """Compute capability times ten: 90 for sm_90."""
        ...

    @property
    def driver(self) -> str:
        """The newest CUDA that the driver knows, such as 13.0."""
        ...

    @property
    def limits(self) -> Limits: ...

    def memory(self) -> Memory: ...

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory; raises OutOfMemory with what was asked and what is free."""
        ...

    def pinned(self, nbytes: int) -> HostBuffer: ...

    def pool(self) -> Pool: ...

    def stream(self) -> Stream: ...

    def event(self, *, timed: bool = False) -> Event: ...

    def tensor_map(self, described: TensorMap) -> bytes:
        """The map as a kernel's argument; it knows the address, and does not keep a buffer open.

        Raises Misuse on chips before sm_90.
        """
        ...

    def load(self, image: bytes) -> Module:
        """Load a cubin or PTX (the simulator: a host library); raises BadImage."""
        ...

"""Simulated streams, events, captures and graphs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffusion_rt.kernels.driver.arguments import Packed, Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.interface import Span
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.driver.resource import Resource
from diffusion_rt.kernels.driver.simulator.memory import Allocation
from diffusion_rt.kernels.driver.simulator.module import SimulatedKernel
from diffusion_rt.kernels.driver.simulator.queue import Hold, Item, Mark, Queue, Work
from diffusion_rt.kernels.driver.tensor_map import plain_address

if TYPE_CHECKING:
    from diffusion_rt.kernels.driver.simulator.device import Simulator


@dataclass(eq=False, slots=True)
class Capture:
    """A capture under way: what each stream in it was given, in one list."""

    origin: "SimulatedStream"
    thread: int = field(default_factory=threading.get_ident)
    items: list[tuple["SimulatedStream", Item]] = field(default_factory=list)
    spoiled: str | None = None
    # Streams that came in by an event, and how many items each had when the origin last met it.
    joined_at: dict["SimulatedStream", int] = field(default_factory=dict)

    def length(self, stream: "SimulatedStream") -> int:
        """How many items of a stream are in."""
        return sum(1 for owner, _ in self.items if owner is stream)


@dataclass(frozen=True, slots=True)
class CapturedPoint:
    """Where an event stands in a capture."""

    capture: Capture
    stream: "SimulatedStream"
    mark: Mark
    length: int


class SimulatedEvent(Resource):
    """An event: the last point it was recorded at."""

    def __init__(self, device: "Simulator", timed: bool) -> None:
        device.forbid_in_capture("make an event")
        super().__init__(device)
        self._device = device
        self.timed = timed
        self.point: Mark | CapturedPoint | None = None

    def done(self) -> bool:
        mark = self._mark("query")
        if mark is None or mark.passed:
            return True
        mark.queue.step()  # Asking makes progress, so that a loop of asking ends.
        return mark.passed

    def synchronize(self) -> None:
        mark = self._mark("wait for")
        if mark is not None:
            self._device.forbid_in_capture("wait for an event")
            self._device.run(mark.queue, mark)

    def elapsed_ms(self, since: "SimulatedEvent") -> float:
        if not (self.timed and since.timed):
            raise Misuse("an event made without timing has no time")
        end, start = self._mark("time"), since._mark("time")
        if end is None or start is None or end.time is None or start.time is None:
            raise Misuse("the time between two events is asked before both have passed")
        return (end.time - start.time) * 1000

    def _mark(self, what: str) -> Mark | None:
        self.require_open()
        if isinstance(self.point, CapturedPoint):
            raise Misuse(f"{what} an event that was recorded in a capture")
        return self.point


class SimulatedStream(Resource):
    """A stream: a queue that runs when somebody waits for it."""

    def __init__(self, device: "Simulator", handle: int) -> None:
        device.forbid_in_capture("make a stream")
        super().__init__(device)
        self._device = device
        self._handle = handle
        self.queue = Queue()
        self.capturing: Capture | None = None

    @property
    def handle(self) -> int:
        self.require_open()
        return self._handle

    def copy(self, destination: Span, source: Span) -> None:
        nbytes = source.nbytes
        if destination.nbytes < nbytes:
            raise Misuse(f"{nbytes} bytes do not fit into a buffer of {destination.nbytes}")
        memory, to, start = self._device.space, destination.address, source.address

        def run() -> None:
            memory.view(to, nbytes)[:] = memory.view(start, nbytes).copy()

        touches = self._find(destination, "copy") + self._find(source, "copy")
        self.submit(Work(f"copy of {nbytes} bytes", "copy", run, touches))

    def fill(self, destination: Span, byte: int) -> None:
        if not 0 <= byte <= 255:
            raise Misuse(f"{byte} is no byte")
        memory, to, nbytes = self._device.space, destination.address, destination.nbytes

        def run() -> None:
            memory.view(to, nbytes)[:] = byte

        self.submit(Work(f"fill of {nbytes} bytes", "fill", run, self._find(destination, "fill")))

    def launch(self, kernel: SimulatedKernel, launch: Launch, arguments: Sequence[Value]) -> None:
        kernel.require_open()
        self._device.limits.check(launch, kernel.name)
        packed = Packed(kernel.name, kernel.parameters, arguments)
        touches = tuple(
            self._device.space.find(address, 1, f"{kernel.name}: {parameter.name}")
            for parameter, value in zip(kernel.parameters, packed.values, strict=True)
            if (address := _address(parameter, value))
        )
        run = kernel.bind(launch, packed)
        self.submit(Work(kernel.name, f"launch of {kernel.name}", run, touches))

    def submit(self, work: Work) -> None:
        """Enqueue work of one's own: for simulated libraries that are given this stream."""
        self.require_open()
        work.check(running=False)
        self._put(work)

    def record(self, event: SimulatedEvent) -> None:
        event.require_open()
        self.require_open()
        mark = Mark(self.queue)
        self._put(mark)
        capture = self.capturing
        if capture is None:
            event.point = mark
        else:
            event.point = CapturedPoint(capture, self, mark, capture.length(self))

    def wait(self, event: SimulatedEvent) -> None:
        event.require_open()
        self.require_open()
        point = event.point
        if isinstance(point, CapturedPoint):
            self._wait_in_capture(point)
        elif point is not None:
            if self.capturing is not None:
                raise self._spoil("a captured stream waits for an event from outside the capture")
            self._put(Hold(point))

    def capture(self, enqueue: Callable[[], None]) -> "SimulatedGraph":
        return SimulatedGraph(self._device, self, self._collect(enqueue))

    def recapture(self, enqueue: Callable[[], None]) -> Capture:
        """Capture into a graph that exists."""
        return self._collect(enqueue)

    def done(self) -> bool:
        self._forbid_in_capture("query")
        if self.queue.items:
            self.queue.step()
        return not self.queue.items

    def synchronize(self) -> None:
        self._forbid_in_capture("synchronise")
        self._device.run(self.queue)

    def _collect(self, enqueue: Callable[[], None]) -> Capture:
        self.require_open()
        if self.capturing is not None:
            raise self._spoil("a second capture on a stream that is being captured")
        capture = Capture(self)
        self.capturing = capture
        self._device.captures.append(capture)
        try:
            enqueue()
        finally:
            self._device.captures.remove(capture)
            for stream in (self, *capture.joined_at):
                stream.capturing = None
        if capture.spoiled is not None:
            raise Misuse(f"the capture was spoiled: {capture.spoiled}")
        for stream, met in capture.joined_at.items():
            if met != capture.length(stream):
                raise Misuse("a stream that joined the capture was not waited for at its end")
        return capture

    def _wait_in_capture(self, point: CapturedPoint) -> None:
        capture = point.capture
        if capture not in self._device.captures:
            raise Misuse("a wait for an event of a capture that has ended")
        if self.capturing is None:
            if self.queue.items and isinstance(self.queue.items[-1], Hold):
                raise Misuse("a stream that waits for other work cannot join a capture")
            self.capturing = capture
            capture.joined_at[self] = -1
        elif self.capturing is not capture:
            raise self._spoil("two captures are joined by an event")
        self._put(Hold(point.mark))
        if point.stream is not self and point.stream in capture.joined_at:
            capture.joined_at[point.stream] = point.length

    def _put(self, item: Item) -> None:
        if self.capturing is None:
            self.queue.items.append(item)
        else:
            self.capturing.items.append((self, item))

    def _find(self, span: Span, what: str) -> tuple[Allocation, ...]:
        return (self._device.space.find(span.address, span.nbytes, what),)

    def _spoil(self, what: str) -> Misuse:
        if self.capturing is not None:
            self.capturing.spoiled = what
        return Misuse(what)

    def _forbid_in_capture(self, what: str) -> None:
        self.require_open()
        self._device.forbid_in_capture(what)
        if self.capturing is not None:
            raise self._spoil(f"{what} on a stream that is being captured")

    def _before_close(self) -> None:
        if not self._device.lost:
            self._forbid_in_capture("close a stream")
            self._device.run(self.queue)  # The driver ends a stream's work before it is gone.

    def _release(self) -> None:
        self._device.streams.remove(self)


class SimulatedGraph(Resource):
    """Captured work, which runs as one piece of the stream it is replayed on."""

    def __init__(self, device: "Simulator", stream: SimulatedStream, capture: Capture) -> None:
        device.forbid_in_capture("instantiate a graph")
        super().__init__(device)
        self._device = device
        self._origin = stream
        self._items = capture.items

    def replay(self, stream: SimulatedStream) -> None:
        self.require_open()
        if stream.capturing is not None:
            raise Misuse("a graph is replayed inside a capture")
        items, origin = self._items, self._origin
        works = [item for _, item in items if isinstance(item, Work)]
        for work in works:
            work.check(running=False)
        touches = tuple({id(a): a for work in works for a in work.touches}.values())
        run = lambda: _replay(items, origin)  # noqa: E731
        stream.submit(Work("graph", "graph", run, touches))

    def update(self, stream: SimulatedStream, enqueue: Callable[[], None]) -> None:
        self.require_open()
        capture = stream.recapture(enqueue)
        if _shape(capture.items) != _shape(self._items):
            raise Misuse("update a captured graph: the new work has another shape")
        self._items = capture.items
        self._origin = stream


def _shape(items: list[tuple[SimulatedStream, Item]]) -> list[str]:
    """What an update may not change: which work follows which."""
    names: dict[SimulatedStream, int] = {}
    shape = []
    for stream, item in items:
        lane = names.setdefault(stream, len(names))
        kind = item.kind.split(" ")[0] if isinstance(item, Work) else type(item).__name__
        shape.append(f"{lane} {kind}")
    return shape


def _replay(items: list[tuple[SimulatedStream, Item]], origin: SimulatedStream) -> None:
    """Run with fresh marks, each stream of the capture as late as the events allow."""
    queues: dict[SimulatedStream, Queue] = {origin: Queue()}
    marks: dict[Mark, Mark] = {}
    for stream, item in items:
        queue = queues.setdefault(stream, Queue())
        if isinstance(item, Mark):
            marks[item] = Mark(queue)
            queue.items.append(marks[item])
        elif isinstance(item, Hold):
            queue.items.append(Hold(marks[item.mark]))
        else:
            queue.items.append(item)
    queues[origin].run()


def _address(parameter: Parameter, value: Value) -> int:
    """The memory that an argument points at; 0 where it points at none."""
    if parameter.kind == "tensor_map" and isinstance(value, bytes):
        return plain_address(value)
    return value if parameter.kind == "pointer" and isinstance(value, int) else 0

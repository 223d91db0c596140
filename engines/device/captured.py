"""Work that a stream is given again and again: captured when it comes a second time."""

from collections.abc import Callable, Mapping

from diffusion_rt.engines.device.protocol import DeviceArray, DeviceEngine
from diffusion_rt.kernels.driver.interface import Graph, Stream


class Captured:
    """What a function enqueues: put there by it once, then replayed by one call.

    What comes only once is never captured, which would take as long as enqueuing it. What has come
    before is captured at once where memory has moved.
    """

    def __init__(
        self, enqueue: Callable[[Stream], None], generation: Callable[[], int] = lambda: 0
    ) -> None:
        """`generation` is another number once memory that the work uses has moved."""
        self._enqueue, self._generation = enqueue, generation
        self._ran: int | None = None  # the generation in which it ran uncaptured
        self._graph: Graph | None = None

    def enqueue(self, stream: Stream) -> None:
        """Put the work on the stream."""
        now, before = self._generation(), self._ran
        if before != now:
            self.close()
            self._enqueue(stream)
            self._ran = now
        if before is not None and self._graph is None:
            self._graph = stream.capture(lambda: self._enqueue(stream))
        if before == now and self._graph is not None:
            self._graph.replay(stream)

    def close(self) -> None:
        """Give the captured work back; when it comes again it is as if for the first time."""
        if self._graph is not None:
            self._graph.close()
        self._graph = self._ran = None


class CapturedEngine:
    """A device engine whose runs on the same arrays are captured."""

    def __init__(self, engine: DeviceEngine) -> None:
        """Take `engine` over: `close` closes it."""
        self._engine = engine
        self._bound: Mapping[str, DeviceArray] = {}
        self._runs = Captured(engine.enqueue, lambda: engine.generation)

    def bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """Bind the engine, if it is not bound to these very arrays."""
        if buffers != self._bound:
            self._runs.close()
            self._bound = {}
            self._engine.bind(buffers)
            self._bound = dict(buffers)

    def enqueue(self, stream: Stream) -> None:
        """Put one run on the stream."""
        self._runs.enqueue(stream)

    def close(self) -> None:
        """Give back the captured run and the engine."""
        self._runs.close()
        self._engine.close()

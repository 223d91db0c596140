"""Streams, events and captured graphs."""

from collections.abc import Callable, Sequence
from typing import Any

from diffusion_rt.kernels.driver.arguments import Packed, Value
from diffusion_rt.kernels.driver.cuda.context import Context
from diffusion_rt.kernels.driver.cuda.module import CudaKernel
from diffusion_rt.kernels.driver.errors import DeviceError, Misuse
from diffusion_rt.kernels.driver.interface import Span
from diffusion_rt.kernels.driver.launch import Launch
from diffusion_rt.kernels.driver.resource import Resource


class CudaEvent(Resource):
    """An event; without timing it costs the device less."""

    def __init__(self, owner: Resource, context: Context, timed: bool) -> None:
        owner.require_open()
        driver = context.enter()
        self._context = context
        self.timed = timed
        flags = int(driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC)
        if not timed:
            flags |= int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self.handle = context.check(driver.cuEventCreate(flags), "make an event")
        super().__init__(owner)

    def done(self) -> bool:
        self.require_open()
        driver = self._context.enter()
        return self._context.ready(driver.cuEventQuery(self.handle), "query an event")

    def synchronize(self) -> None:
        self.require_open()
        driver = self._context.enter()
        self._context.check(driver.cuEventSynchronize(self.handle), "wait for an event")

    def elapsed_ms(self, since: "CudaEvent") -> float:
        self.require_open()
        since.require_open()
        if not (self.timed and since.timed):
            raise Misuse("an event made without timing has no time")
        driver = self._context.enter()
        answer = driver.cuEventElapsedTime(since.handle, self.handle)
        return float(self._context.check(answer, "read the time between two events"))

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuEventDestroy(self.handle))


class CudaStream(Resource):
    """A stream that does not wait for the default one."""

    def __init__(self, owner: Resource, context: Context) -> None:
        owner.require_open()
        driver = context.enter()
        self._owner = owner
        self._context = context
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._stream = context.check(driver.cuStreamCreate(flags), "make a stream")
        self._capturing = False
        super().__init__(owner)

    @property
    def handle(self) -> int:
        self._enter()  # Libraries that are given it work in the calling thread's context.
        return int(self._stream)

    def copy(self, destination: Span, source: Span) -> None:
        nbytes = source.nbytes
        if destination.nbytes < nbytes:
            raise Misuse(f"{nbytes} bytes do not fit into a buffer of {destination.nbytes}")
        driver = self._enter()
        answer = driver.cuMemcpyAsync(destination.address, source.address, nbytes, self._stream)
        self._context.check(answer, f"copy {nbytes} bytes")

    def fill(self, destination: Span, byte: int) -> None:
        if not 0 <= byte <= 255:
            raise Misuse(f"{byte} is no byte")
        driver = self._enter()
        answer = driver.cuMemsetD8Async(destination.address, byte, destination.nbytes, self._stream)
        self._context.check(answer, f"fill {destination.nbytes} bytes")

    def launch(self, kernel: CudaKernel, launch: Launch, arguments: Sequence[Value]) -> None:
        kernel.prepare(launch)
        packed = Packed(kernel.name, kernel.parameters, arguments)
        driver = self._enter()
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
        config.sharedMemBytes = launch.shared_bytes
        config.hStream = self._stream
        attributes = _attributes(driver, launch)
        config.attrs = attributes
        config.numAttrs = len(attributes)
        # The driver copies the arguments before it returns, in a capture as well.
        answer = driver.cuLaunchKernelEx(config, kernel.function, packed.address, 0)
        self._context.check(answer, f"launch {kernel.name}")

    def record(self, event: CudaEvent) -> None:
        event.require_open()
        driver = self._enter()
        self._context.check(driver.cuEventRecord(event.handle, self._stream), "record an event")

    def wait(self, event: CudaEvent) -> None:
        event.require_open()
        driver = self._enter()
        answer = driver.cuStreamWaitEvent(self._stream, event.handle, 0)
        self._context.check(answer, "let a stream wait for an event")

    def capture(self, enqueue: Callable[[], None]) -> "CudaGraph":
        graph = self._collect(enqueue)
        try:
            return CudaGraph(self._owner, self, self._context, graph)
        finally:
            self._destroy(graph)

    def done(self) -> bool:
        driver = self._enter()
        self.forbid_in_capture("query")
        return self._context.ready(driver.cuStreamQuery(self._stream), "query a stream")

    def synchronize(self) -> None:
        driver = self._enter()
        self.forbid_in_capture("synchronise")
        self._context.check(driver.cuStreamSynchronize(self._stream), "wait for a stream")

    def recapture(self, executable: Any, enqueue: Callable[[], None]) -> None:
        """Capture again into an instantiated graph."""
        graph = self._collect(enqueue)
        try:
            driver = self._enter()
            answer = driver.cuGraphExecUpdate(executable, graph)
            self._context.check(answer, "update a captured graph (its shape must be the same)")
        finally:
            self._destroy(graph)

    def forbid_in_capture(self, what: str) -> None:
        """Raise Misuse before a call that would spoil a capture of this stream."""
        if self._capturing:
            raise Misuse(f"{what} on a stream that is being captured")

    def _collect(self, enqueue: Callable[[], None]) -> Any:
        driver = self._enter()
        self.forbid_in_capture("a second capture")
        # Thread-local: another thread of a server may allocate meanwhile; this one may not.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._context.check(driver.cuStreamBeginCapture(self._stream, mode), "begin a capture")
        self._capturing = True
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._capturing = False
        driver = self._context.enter()
        return self._context.check(driver.cuStreamEndCapture(self._stream), "end a capture")

    def _abandon(self) -> None:
        """End a capture whose making failed: the stream must be usable again."""
        try:
            answer = self._context.enter().cuStreamEndCapture(self._stream)
        except DeviceError:
            return  # The device is lost; what `enqueue` raised says more.
        self._context.quietly(answer)
        if int(answer[0]) == 0:
            self._destroy(answer[1])

    def _destroy(self, graph: Any) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuGraphDestroy(graph))

    def _enter(self) -> Any:
        self.require_open()
        return self._context.enter()

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuStreamDestroy(self._stream))


class CudaGraph(Resource):
    """An instantiated graph; the graph it was made from is no longer needed."""

    def __init__(self, owner: Resource, stream: CudaStream, context: Context, graph: Any) -> None:
        driver = context.enter()
        self._context = context
        self._executable = context.check(
            driver.cuGraphInstantiate(graph, 0), "instantiate a captured graph"
        )
        super().__init__(owner)
        # Otherwise the first replay carries the upload.
        context.check(driver.cuGraphUpload(self._executable, stream.handle), "upload a graph")

    def replay(self, stream: CudaStream) -> None:
        self.require_open()
        driver = self._context.enter()
        answer = driver.cuGraphLaunch(self._executable, stream.handle)
        self._context.check(answer, "replay a captured graph")

    def update(self, stream: CudaStream, enqueue: Callable[[], None]) -> None:
        self.require_open()
        stream.recapture(self._executable, enqueue)

    def _release(self) -> None:
        if not self._context.lost:
            self._context.quietly(self._context.enter().cuGraphExecDestroy(self._executable))


def _attributes(driver: Any, launch: Launch) -> list[Any]:
    attributes = []
    if launch.cluster is not None:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster = attribute.value.clusterDim
        cluster.x, cluster.y, cluster.z = launch.cluster
        attributes.append(attribute)
    if launch.overlap:
        attribute = driver.CUlaunchAttribute()
        attribute.id = (
            driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        )
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    return attributes

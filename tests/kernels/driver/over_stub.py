"""The real device against the real bindings over the stub driver: which calls, in which order.

Run by `test_cuda.py` in a process whose libcuda.so.1 is the stub.
"""

import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from diffusion_rt.kernels.compile import CompileError
from diffusion_rt.kernels.driver import (
    BadImage,
    DeviceError,
    DeviceLost,
    Launch,
    Misuse,
    NoDriver,
    OutOfMemory,
    TensorMap,
    open_device,
)
from diffusion_rt.kernels.driver.cuda import context
from diffusion_rt.kernels.driver.tensor_map import plain
from support import scale_add
from support.stub_driver import Journal

STUB = ctypes.CDLL("libcuda.so.1")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    journal = Journal(importlib.import_module("cuda.bindings.driver"))
    monkeypatch.setattr(context, "bindings", lambda: journal)
    return journal


@pytest.fixture
def device(journal: Journal) -> Iterator[Any]:
    device = open_device()
    journal.take()
    yield device
    STUB.stub_fail(b"", 0)
    STUB.stub_busy(0)
    device.close()


@pytest.fixture(scope="module")
def image() -> bytes:
    try:
        return scale_add.host_image()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def test_opening_and_closing(journal: Journal) -> None:
    device = open_device()
    calls = journal.take()
    assert calls[:4] == [
        "cuInit",
        "cuDriverGetVersion",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
    ]
    assert set(calls[4:]) == {"cuDeviceGetName", "cuDeviceGetAttribute"}
    device.close()
    assert journal.take() == ["cuCtxSynchronize", "cuDevicePrimaryCtxRelease"]


def test_memory(device: Any, journal: Journal) -> None:
    device.allocate(10).close()
    assert journal.take() == ["cuMemAlloc", "cuMemFree"]
    device.pinned(10).close()
    assert journal.take() == ["cuMemHostAlloc", "cuMemFreeHost"]
    device.memory()
    assert journal.take() == ["cuMemGetInfo"]
    stream = device.stream()
    journal.take()
    with device.pool() as pool:
        buffer = pool.allocate(10, stream)
        buffer.close()
        pool.trim()
    assert journal.take() == [
        "cuMemPoolCreate",
        "cuMemPoolSetAttribute",
        "cuMemAllocFromPoolAsync",
        "cuMemFreeAsync",
        "cuMemPoolTrimTo",
        "cuMemPoolDestroy",
    ]


def test_streams_and_events(device: Any, journal: Journal) -> None:
    stream, event = device.stream(), device.event()
    stream.record(event)
    stream.wait(event)
    event.done()
    event.synchronize()
    stream.done()
    stream.synchronize()
    event.close()
    stream.close()
    assert journal.take() == [
        "cuStreamCreate",
        "cuEventCreate",
        "cuEventRecord",
        "cuStreamWaitEvent",
        "cuEventQuery",
        "cuEventSynchronize",
        "cuStreamQuery",
        "cuStreamSynchronize",
        "cuEventDestroy",
        "cuStreamDestroy",
    ]


def test_queries_of_a_busy_device(device: Any) -> None:
    stream, event = device.stream(), device.event()
    stream.record(event)
    STUB.stub_busy(1)
    assert not stream.done()
    assert not event.done()


def test_copy_fill_and_time(device: Any, journal: Journal) -> None:
    stream, buffer, staged = device.stream(), device.allocate(8), device.pinned(8)
    start, end = device.event(timed=True), device.event(timed=True)
    journal.take()
    stream.record(start)
    stream.copy(buffer, staged)
    stream.fill(buffer, 3)
    stream.record(end)
    assert end.elapsed_ms(start) == 1.5
    assert journal.take() == [
        "cuEventRecord",
        "cuMemcpyAsync",
        "cuMemsetD8Async",
        "cuEventRecord",
        "cuEventElapsedTime",
    ]


def test_loading_and_launching(device: Any, journal: Journal, image: bytes) -> None:
    stream, buffer = device.stream(), device.allocate(400)
    journal.take()
    module = device.load(image)
    kernel = module.kernel("scale_add", scale_add.VARIANT.parameters)
    assert journal.take() == [
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncLoad",  # before any capture can need it
        "cuFuncGetAttribute",
        "cuFuncGetAttribute",
    ]
    arguments = (buffer.address, 0, 100, 1.0)
    stream.launch(kernel, scale_add.launch(100), arguments)
    assert journal.take() == ["cuLaunchKernelEx"]
    large = Launch(grid=(1, 1, 1), block=(64, 1, 1), shared_bytes=100_000)
    stream.launch(kernel, large, arguments)
    stream.launch(kernel, large, arguments)
    # The limit of shared memory is raised once, and before the launch that needs it.
    assert journal.take() == ["cuFuncSetAttribute", "cuLaunchKernelEx", "cuLaunchKernelEx"]
    assert STUB.stub_last_shared() == 100_000
    module.close()
    assert journal.take() == ["cuModuleUnload"]


class Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


@pytest.mark.parametrize(
    ("launch", "wanted"),
    [
        (Launch(grid=(8, 6, 2), block=(64, 1, 1)), []),
        (Launch(grid=(8, 6, 2), block=(64, 1, 1), cluster=(4, 2, 1)), [(4, [4, 2, 1])]),
        (Launch(grid=(8, 6, 2), block=(64, 1, 1), overlap=True), [(6, [1, 0, 0])]),
        (
            Launch(grid=(8, 6, 2), block=(64, 1, 1), cluster=(1, 3, 2), overlap=True),
            [(4, [1, 3, 2]), (6, [1, 0, 0])],
        ),
    ],
)
def test_launch_attributes_reach_the_driver(
    device: Any, image: bytes, launch: Launch, wanted: list[tuple[int, list[int]]]
) -> None:
    kernel = device.load(image).kernel("scale_add", scale_add.VARIANT.parameters)
    buffer = device.allocate(400)
    device.stream().launch(kernel, launch, (buffer.address, 0, 0, 1.0))
    seen = (Attribute * 8)()
    count = STUB.stub_last_attributes(seen)
    assert [(a.id, list(a.value)[:3]) for a in seen[:count]] == wanted


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_tensor_map_reaches_the_driver_whole(
    device: Any, journal: Journal, dtype: Any, swizzle: Any
) -> None:
    """The stub writes down what it was told just as the simulator does."""
    buffer = device.allocate(1 << 16)
    for sizes, strides, box in (
        ((96,), (), (8,)),
        ((24, 7), (112,), (8, 256)),
        ((8, 7, 5, 3, 2), (32, 256, 1280, 3840), (8, 4, 3, 2, 1)),
    ):
        described = TensorMap(
            name="x",
            dtype=dtype,
            address=buffer.address,
            sizes=sizes,
            strides=strides,
            box=box,
            swizzle=swizzle,
        )
        assert device.tensor_map(described) == plain(described)
    assert journal.take()[-1] == "cuGetProcAddress"
    STUB.stub_fail(b"cuTensorMapEncodeTiled", 1)
    with pytest.raises(Misuse, match="encode the tensor map of x"):
        device.tensor_map(described)


def test_a_capture(device: Any, journal: Journal) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    journal.take()
    graph = stream.capture(lambda: stream.fill(buffer, 1))
    assert journal.take() == [
        "cuStreamBeginCapture",
        "cuMemsetD8Async",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphUpload",
        "cuGraphDestroy",
    ]
    graph.replay(stream)
    assert journal.take() == ["cuGraphLaunch"]
    graph.update(stream, lambda: stream.fill(buffer, 2))
    assert journal.take() == [
        "cuStreamBeginCapture",
        "cuMemsetD8Async",
        "cuStreamEndCapture",
        "cuGraphExecUpdate",
        "cuGraphDestroy",
    ]
    graph.close()
    assert journal.take() == ["cuGraphExecDestroy"]


def test_a_capture_that_fails_inside_is_ended(device: Any, journal: Journal) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    journal.take()

    def enqueue() -> None:
        stream.fill(buffer, 1)
        raise KeyError

    with pytest.raises(KeyError):
        stream.capture(enqueue)
    assert journal.take() == [
        "cuStreamBeginCapture",
        "cuMemsetD8Async",
        "cuStreamEndCapture",
        "cuGraphDestroy",
    ]


def test_an_instantiation_that_fails_leaves_nothing(device: Any, journal: Journal) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    journal.take()
    STUB.stub_fail(b"cuGraphInstantiateWithFlags", 2)
    with pytest.raises(OutOfMemory):
        stream.capture(lambda: stream.fill(buffer, 1))
    assert journal.take()[-1] == "cuGraphDestroy"


def test_every_stream_and_event_avoids_the_default_stream(device: Any, journal: Journal) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    stream.fill(buffer, 1)
    position = journal.calls.index("cuStreamCreate")
    driver = importlib.import_module("cuda.bindings.driver")
    assert journal.arguments[position] == (int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING),)
    assert int(journal.arguments[journal.calls.index("cuMemsetD8Async")][-1]) != 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, OutOfMemory),
        (209, BadImage),
        (218, BadImage),
        (222, BadImage),
        (100, NoDriver),
        (1, Misuse),
        (400, Misuse),
        (900, Misuse),
        (999, DeviceError),
        (304, DeviceError),
    ],
)
def test_failures_are_told_apart(device: Any, code: int, kind: type[DeviceError]) -> None:
    STUB.stub_fail(b"cuMemAlloc", code)
    with pytest.raises(DeviceError) as caught:
        device.allocate(4)
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert f"({code})" in str(caught.value)
    device.allocate(4)  # The device lives on.


@pytest.mark.parametrize("code", [700, 710, 716, 717, 718, 719])
def test_a_sticky_error_loses_the_device(device: Any, journal: Journal, code: int) -> None:
    stream, buffer, graph = device.stream(), device.allocate(8), device.stream().capture(list)
    STUB.stub_fail(b"cuStreamSynchronize", code)
    with pytest.raises(DeviceLost, match="start it again") as first:
        stream.synchronize()
    journal.take()
    uses: tuple[Callable[[], object], ...] = (
        lambda: device.allocate(4),
        lambda: stream.fill(buffer, 0),
        lambda: graph.replay(stream),
        device.memory,
    )
    for use in uses:
        with pytest.raises(DeviceLost) as again:
            use()
        assert again.value is first.value
    assert journal.take() == []  # Nothing more is asked of a broken context.
    device.close()
    assert journal.take() == ["cuDevicePrimaryCtxRelease"]


@pytest.mark.parametrize(
    ("version", "accepted"), [("12040", False), ("12070", False), ("12080", True), ("13050", True)]
)
def test_an_old_driver_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    monkeypatch.setenv("STUB_DRIVER_VERSION", version)
    if accepted:
        open_device().close()
    else:
        with pytest.raises(NoDriver, match=r"knows CUDA 12\.[47], 12\.8 is needed; update it"):
            open_device()


def test_a_driver_that_does_not_start_is_missing() -> None:
    for code, way_out in ((100, "nvidia-smi"), (803, "reboot"), (999, "nvidia-smi")):
        STUB.stub_fail(b"cuInit", code)
        with pytest.raises(DeviceError, match=way_out):
            open_device()
    STUB.stub_fail(b"", 0)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(NoDriver, match="open device 5"):
        open_device(5)


def test_everything_allocated_is_freed() -> None:
    STUB.stub_used.restype = ctypes.c_size_t
    before = STUB.stub_used()
    device = open_device()
    stream = device.stream()
    made = [device.allocate(1000), device.pool().allocate(1000, stream), device.pinned(1000)]
    assert STUB.stub_used() == before + 2000
    device.close()
    assert STUB.stub_used() == before
    assert all(isinstance(thing, object) for thing in made)


def test_threads_share_a_device(device: Any) -> None:
    import threading

    found: list[Any] = []

    def work() -> None:
        stream, staged = device.stream(), device.pinned(64)
        buffer = device.allocate(64)
        stream.fill(buffer, 5)
        stream.copy(staged, buffer)
        stream.synchronize()
        found.append(np.unique(staged.array).tolist())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[5]] * 4

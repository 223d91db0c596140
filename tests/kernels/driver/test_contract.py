"""What every device does, the simulated one and the real one alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.driver import (
    BadImage,
    Device,
    DeviceError,
    Launch,
    Misuse,
    OutOfMemory,
    part,
)
from support import scale_add

FLOATS = NDArray[np.float32]


def upload(device: Device, stream: Any, values: FLOATS) -> Any:
    """A device buffer that holds these values once the stream gets there."""
    staged, buffer = device.pinned(values.nbytes), device.allocate(values.nbytes)
    staged.array.view(np.float32)[:] = values
    stream.copy(buffer, staged)
    return buffer


def download(device: Device, stream: Any, buffer: Any) -> FLOATS:
    """The values of a buffer, after all work of the stream."""
    staged = device.pinned(buffer.nbytes)
    stream.copy(staged, buffer)
    stream.synchronize()
    values: FLOATS = staged.array.view(np.float32).copy()
    staged.close()
    return values


@pytest.fixture
def kernel(device: Device, image: bytes) -> Any:
    return device.load(image).kernel("scale_add", scale_add.VARIANT.parameters)


def test_copies_bring_bytes_there_and_back(device: Device) -> None:
    stream = device.stream()
    values = np.arange(1000, dtype=np.float32)
    buffer = upload(device, stream, values)
    other = device.allocate(values.nbytes)
    stream.copy(other, buffer)
    np.testing.assert_array_equal(download(device, stream, other), values)


def test_a_part_is_copied_and_the_rest_stays(device: Device) -> None:
    stream = device.stream()
    buffer = upload(device, stream, np.zeros(8, np.float32))
    ones = upload(device, stream, np.ones(8, np.float32))
    stream.copy(part(buffer, 8, 12), part(ones, 0, 12))
    np.testing.assert_array_equal(download(device, stream, buffer), [0, 0, 1, 1, 1, 0, 0, 0])


def test_a_part_outside_is_refused(device: Device) -> None:
    buffer = device.allocate(16)
    for offset, nbytes in ((8, 9), (-1, 4), (17, 0), (0, -1)):
        with pytest.raises(Misuse, match="of a buffer of 16"):
            part(buffer, offset, nbytes)


def test_fill_sets_every_byte_and_no_other(device: Device) -> None:
    stream = device.stream()
    buffer = device.allocate(100)
    stream.fill(buffer, 0x11)
    stream.fill(part(buffer, 1, 97), 0x22)
    staged = device.pinned(100)
    stream.copy(staged, buffer)
    stream.synchronize()
    assert staged.array.tolist() == [0x11] + [0x22] * 97 + [0x11] * 2


def test_allocations_are_aligned(device: Device) -> None:
    for nbytes in (1, 3, 257):
        assert device.allocate(nbytes).address % 256 == 0


def test_an_event_orders_two_streams(device: Device) -> None:
    first, second = device.stream(), device.stream()
    buffer = upload(device, first, np.full(64, 3, np.float32))
    event = device.event()
    first.record(event)
    second.wait(event)
    np.testing.assert_array_equal(download(device, second, buffer), np.full(64, 3))
    event.synchronize()
    assert event.done()


def test_an_event_never_recorded_has_passed(device: Device) -> None:
    stream, event = device.stream(), device.event()
    assert event.done()
    event.synchronize()
    stream.wait(event)
    stream.synchronize()


def test_a_stream_is_done_after_synchronising(device: Device) -> None:
    stream = device.stream()
    stream.fill(device.allocate(4), 1)
    stream.synchronize()
    assert stream.done()


def test_events_measure_time_only_where_asked(device: Device) -> None:
    stream = device.stream()
    start, end, untimed = device.event(timed=True), device.event(timed=True), device.event()
    stream.record(start)
    stream.record(end)
    stream.synchronize()
    assert end.elapsed_ms(start) >= 0
    with pytest.raises(Misuse, match="timing"):
        end.elapsed_ms(untimed)


@pytest.mark.parametrize("count", [1, 63, 64, 1000])
def test_a_kernel_computes(device: Device, kernel: Any, count: int) -> None:
    stream = device.stream()
    values = np.linspace(-1, 1, count, dtype=np.float32)
    buffer = upload(device, stream, values)
    addend = upload(device, stream, np.ones(count, np.float32))
    arguments = (buffer.address, addend.address, count, 0.5)
    stream.launch(kernel, scale_add.launch(count), arguments)
    stream.launch(kernel, scale_add.launch(count), (buffer.address, 0, count, 2.0))
    np.testing.assert_array_equal(download(device, stream, buffer), (values * 0.5 + 1) * 2)


def test_wrong_arguments_are_refused(device: Device, kernel: Any) -> None:
    stream = device.stream()
    at = device.allocate(400).address
    for arguments, trouble in (
        ((at, 0, 100), "3 arguments given, 4 wanted"),
        ((at + 2, 0, 100, 1.0), "not aligned to 4"),
        ((0, 0, 100, 1.0), "values is a null pointer"),
        ((at, 0, 2**31, 1.0), "no int32"),
        ((at, 0, 1.5, 1.0), "no int32"),
        ((-4, 0, 100, 1.0), "no pointer"),
        ((at, b"map", 100, 1.0), "addend is bytes"),
    ):
        with pytest.raises(Misuse, match=trouble):
            stream.launch(kernel, scale_add.launch(100), arguments)


@pytest.mark.parametrize(
    ("launch", "trouble"),
    [
        (Launch(grid=(1, 1, 1), block=(1024, 2, 1)), "2048 threads"),
        (Launch(grid=(0, 1, 1), block=(1, 1, 1)), r"grid.x=0"),
        (Launch(grid=(1, 65536, 1), block=(1, 1, 1)), r"grid.y=65536"),
        (Launch(grid=(1, 1, 1), block=(1, 1, 65)), r"block.z=65"),
        (Launch(grid=(1, 1, 1), block=(1, 1, 1), shared_bytes=232449), "shared memory"),
        (Launch(grid=(3, 1, 1), block=(1, 1, 1), cluster=(2, 1, 1)), "no multiple"),
        (Launch(grid=(16, 1, 1), block=(1, 1, 1), cluster=(16, 1, 1)), "cluster of"),
    ],
)
def test_launches_beyond_the_chip_are_refused(
    device: Device, kernel: Any, launch: Launch, trouble: str
) -> None:
    buffer = device.allocate(4)
    with pytest.raises(Misuse, match=trouble):
        device.stream().launch(kernel, launch, (buffer.address, 0, 1, 1.0))


def test_large_shared_memory_clusters_and_overlap_launch(device: Device, kernel: Any) -> None:
    if device.arch < 90:
        pytest.skip("skipped: clusters need sm_90")
    stream = device.stream()
    buffer = upload(device, stream, np.ones(128, np.float32))
    for launch in (
        Launch(grid=(2, 1, 1), block=(64, 1, 1), shared_bytes=200_000),
        Launch(grid=(2, 1, 1), block=(64, 1, 1), cluster=(2, 1, 1)),
        Launch(grid=(2, 1, 1), block=(64, 1, 1), overlap=True),
    ):
        stream.launch(kernel, launch, (buffer.address, 0, 128, 2.0))
        stream.synchronize()
    np.testing.assert_array_equal(download(device, stream, buffer), np.full(128, 8))


def test_a_capture_runs_nothing_and_a_replay_all_of_it(device: Device, kernel: Any) -> None:
    stream = device.stream()
    buffer = upload(device, stream, np.ones(10, np.float32))
    addend = upload(device, stream, np.ones(10, np.float32))
    stream.synchronize()

    def enqueue() -> None:
        stream.launch(kernel, scale_add.launch(10), (buffer.address, addend.address, 10, 2.0))

    graph = stream.capture(enqueue)
    np.testing.assert_array_equal(download(device, stream, buffer), np.ones(10))
    graph.replay(stream)
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, buffer), np.full(10, 7))
    # Values in memory are those of the replay, arguments those of the capture.
    stream.fill(addend, 0)
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, buffer), np.full(10, 14))


def test_a_graph_replays_on_another_stream(device: Device) -> None:
    stream, other = device.stream(), device.stream()
    buffer = device.allocate(8)
    graph = stream.capture(lambda: stream.fill(buffer, 0))
    stream.close()
    graph.replay(other)
    np.testing.assert_array_equal(download(device, other, buffer), np.zeros(2))


def test_an_update_takes_new_values_and_refuses_another_shape(device: Device, kernel: Any) -> None:
    stream = device.stream()
    buffer = upload(device, stream, np.ones(10, np.float32))
    stream.synchronize()

    def scaled(by: float) -> Callable[[], None]:
        arguments = (buffer.address, 0, 10, by)
        return lambda: stream.launch(kernel, scale_add.launch(10), arguments)

    graph = stream.capture(scaled(2))
    graph.update(stream, scaled(5))
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, buffer), np.full(10, 5))

    def more() -> None:
        scaled(3)()
        stream.fill(buffer, 0)

    with pytest.raises(Misuse, match="update a captured graph"):
        graph.update(stream, more)
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, buffer), np.full(10, 25))


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda device, stream: device.allocate(4),
        lambda device, stream: device.pinned(4),
        lambda device, stream: stream.synchronize(),
        lambda device, stream: stream.done(),
        lambda device, stream: stream.capture(lambda: None),
    ],
    ids=["allocate", "pinned", "synchronise", "query", "capture"],
)
def test_a_capture_forbids_what_stops_the_device(
    device: Device, forbidden: Callable[[Any, Any], object]
) -> None:
    stream = device.stream()
    buffer = device.allocate(4)

    def enqueue() -> None:
        stream.fill(buffer, 9)
        forbidden(device, stream)

    with pytest.raises(Misuse):
        stream.capture(enqueue)
    # The stream is usable again, and nothing of the capture ran.
    stream.fill(buffer, 0)
    np.testing.assert_array_equal(download(device, stream, buffer), [0])


def test_an_error_inside_ends_the_capture(device: Device) -> None:
    stream = device.stream()
    buffer = device.allocate(4)

    def enqueue() -> None:
        stream.fill(buffer, 1)
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        stream.capture(enqueue)
    graph = stream.capture(lambda: stream.fill(buffer, 0))
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, buffer), [0])


def test_a_capture_forks_and_joins(device: Device, kernel: Any) -> None:
    stream, side = device.stream(), device.stream()
    buffer = upload(device, stream, np.ones(4, np.float32))
    result = device.allocate(16)
    stream.synchronize()
    fork, join = device.event(), device.event()

    def enqueue() -> None:
        stream.launch(kernel, scale_add.launch(4), (buffer.address, 0, 4, 3.0))
        stream.record(fork)
        side.wait(fork)
        side.copy(result, buffer)
        side.record(join)
        stream.wait(join)
        stream.fill(buffer, 0)

    graph = stream.capture(enqueue)
    graph.replay(stream)
    np.testing.assert_array_equal(download(device, stream, result), np.full(4, 3))
    np.testing.assert_array_equal(download(device, stream, buffer), np.zeros(4))
    side.fill(buffer, 0)  # The side stream is its own again.
    side.synchronize()
    with pytest.raises(DeviceError):
        fork.synchronize()


def test_a_fork_that_never_joins_is_refused(device: Device) -> None:
    stream, side = device.stream(), device.stream()
    buffer = device.allocate(4)
    fork = device.event()

    def enqueue() -> None:
        stream.record(fork)
        side.wait(fork)
        side.fill(buffer, 1)

    with pytest.raises(Misuse):
        stream.capture(enqueue)
    stream.fill(buffer, 0)
    np.testing.assert_array_equal(download(device, stream, buffer), [0])


def test_out_of_memory_is_told_apart_and_survived(device: Device) -> None:
    before = device.memory()
    with pytest.raises(OutOfMemory, match=r"allocate \d+ bytes.*free"):
        device.allocate(before.total + 1)
    buffer = device.allocate(1 << 20)
    assert device.memory().free <= before.total - (1 << 20)
    buffer.close()
    assert device.memory().free <= before.total


@pytest.mark.parametrize("nbytes", [0, -1])
def test_no_bytes_are_no_memory(device: Device, nbytes: int) -> None:
    pool, stream = device.pool(), device.stream()
    for make in (device.allocate, device.pinned, lambda n: pool.allocate(n, stream)):
        with pytest.raises(Misuse, match="at least 1"):
            make(nbytes)


def test_a_pool_gives_and_takes_in_stream_order(device: Device) -> None:
    stream, pool = device.stream(), device.pool()
    result = device.allocate(256)
    for byte in (1, 2, 0):
        with pool.allocate(256, stream) as scratch:
            stream.fill(scratch, byte)
            stream.copy(result, scratch)
    np.testing.assert_array_equal(download(device, stream, result), np.zeros(64))
    pool.trim()
    with pytest.raises(Misuse):
        stream.capture(lambda: pool.allocate(4, stream).close())


def test_what_is_closed_is_not_used(device: Device, image: bytes) -> None:
    stream, event, buffer, module = (
        device.stream(),
        device.event(),
        device.allocate(4),
        device.load(image),
    )
    kernel = module.kernel("scale_add", scale_add.VARIANT.parameters)
    graph = stream.capture(lambda: None)
    for thing in (graph, module, event, buffer):
        thing.close()
        thing.close()
    uses: tuple[Callable[[], object], ...] = (
        lambda: buffer.address,
        lambda: stream.fill(buffer, 0),
        lambda: stream.record(event),
        lambda: stream.wait(event),
        lambda: event.done(),
        lambda: graph.replay(stream),
        lambda: module.kernel("scale_add", ()),
        lambda: stream.launch(kernel, scale_add.launch(1), (256, 0, 1, 1.0)),
    )
    for use in uses:
        with pytest.raises(Misuse, match="closed"):
            use()
    stream.close()
    with pytest.raises(Misuse, match="closed"):
        stream.synchronize()


def test_closing_the_device_closes_all_of_it(device: Device, image: bytes) -> None:
    stream, pool = device.stream(), device.pool()
    made = [
        device.allocate(4),
        device.pinned(4),
        device.event(),
        pool.allocate(4, stream),
        device.load(image),
        stream.capture(lambda: None),
        device.stream(),
    ]
    device.close()
    device.close()
    for thing in (*made, stream, pool):
        thing.close()
    for use in (lambda: device.allocate(4), device.stream, device.memory):
        with pytest.raises(Misuse, match="closed"):
            use()


@pytest.mark.parametrize("image", [b"", b"neither cubin nor PTX"])
def test_a_bad_image_is_told_apart(device: Device, image: bytes) -> None:
    if image and device.name == "simulator":
        pytest.skip("skipped: this simulator's kernels are plain Python")
    with pytest.raises(BadImage, match="compile"):
        device.load(image)


def test_a_kernel_that_is_not_there_is_named(device: Device, image: bytes) -> None:
    with pytest.raises(DeviceError, match="scale_sub"):
        device.load(image).kernel("scale_sub", ())


def test_a_copy_that_does_not_fit_is_refused(device: Device) -> None:
    with pytest.raises(Misuse, match="8 bytes do not fit into a buffer of 4"):
        device.stream().copy(device.allocate(4), device.allocate(8))
    with pytest.raises(Misuse, match="256 is no byte"):
        device.stream().fill(device.allocate(4), 256)


def test_a_device_says_what_it_is(device: Device) -> None:
    assert device.name
    assert device.driver
    assert device.limits.arch == device.arch
    assert device.limits.multiprocessors > 0

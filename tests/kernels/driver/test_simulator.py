"""The simulator's rules: what a GPU would get wrong in silence must be wrong aloud here."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.kernels.driver import DeviceLost, Launch, Misuse, Parameter
from diffusion_rt.kernels.driver.arguments import Packed
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.queue import Work
from support import scale_add


@pytest.fixture
def device() -> Any:
    return Simulator(open_image=scale_add.open_image)


def floats(buffer: Any) -> Any:
    return buffer.array.view(np.float32)


def test_work_runs_only_when_waited_for(device: Simulator) -> None:
    stream, staged = device.stream(), device.pinned(16)
    stream.fill(staged, 0)
    assert np.isnan(floats(staged)).all()
    stream.synchronize()
    assert (floats(staged) == 0).all()


def test_the_host_that_writes_too_early_spoils_the_copy(device: Simulator) -> None:
    stream, staged, buffer = device.stream(), device.pinned(16), device.allocate(16)
    floats(staged)[:] = 1
    stream.copy(buffer, staged)
    floats(staged)[:] = 2  # The copy has not been waited for.
    stream.copy(staged, buffer)
    stream.synchronize()
    assert (floats(staged) == 2).all()


def test_fresh_memory_is_poison_in_every_format(device: Simulator) -> None:
    staged = device.pinned(64)
    for dtype in (np.float16, np.float32, np.float64):
        assert np.isnan(staged.array.view(dtype)).all()


def test_a_missing_event_shows(device: Simulator) -> None:
    first, second = device.stream(), device.stream()
    buffer, staged = device.allocate(16), device.pinned(16)
    first.fill(buffer, 0)
    second.copy(staged, buffer)  # Nothing says that this comes after the fill.
    second.synchronize()
    assert np.isnan(floats(staged)).all()


def test_a_missing_join_inside_a_capture_shows(device: Simulator) -> None:
    stream, side = device.stream(), device.stream()
    buffer, staged = device.allocate(16), device.pinned(16)
    fork, join = device.event(), device.event()

    def enqueue(wait: bool) -> None:
        stream.record(fork)
        side.wait(fork)
        side.fill(buffer, 0)
        side.record(join)
        if wait:
            stream.wait(join)
        stream.copy(staged, buffer)
        if not wait:
            stream.wait(join)

    stream.capture(lambda: enqueue(wait=False)).replay(stream)
    stream.synchronize()
    assert np.isnan(floats(staged)).all()
    stream.capture(lambda: enqueue(wait=True)).replay(stream)
    stream.synchronize()
    assert (floats(staged) == 0).all()


def test_streams_that_run_ahead_show_a_write_after_read() -> None:
    """The reader is waited for first, so only a stream that runs ahead can overtake it."""
    seen = set()
    for seed in range(20):
        device = Simulator(seed=seed)
        reader, writer = device.stream(), device.stream()
        buffer, staged = device.allocate(16), device.pinned(16)
        reader.fill(buffer, 0)
        reader.synchronize()
        reader.copy(staged, buffer)
        writer.fill(buffer, 0xFF)
        reader.synchronize()
        seen.add(bool(np.isnan(floats(staged)).any()))
    assert seen == {True, False}


def test_the_host_does_not_read_device_memory(device: Simulator) -> None:
    with pytest.raises(Misuse, match="copy it to pinned memory"):
        _ = device.allocate(4).array


def test_memory_with_queued_work_is_not_freed(device: Simulator) -> None:
    stream, buffer = device.stream(), device.allocate(16)
    stream.fill(buffer, 0)
    with pytest.raises(Misuse, match="fill of 16 bytes on it is queued"):
        buffer.close()
    stream.synchronize()
    buffer.close()


def test_addresses_are_never_used_twice(device: Simulator) -> None:
    addresses = set()
    for _ in range(5):
        buffer = device.allocate(16)
        addresses.add(buffer.address)
        buffer.close()
    assert len(addresses) == 5


def test_a_freed_address_is_refused(device: Simulator) -> None:
    stream, buffer = device.stream(), device.allocate(16)
    kernel = device.load(b"any").kernel("scale_add", scale_add.VARIANT.parameters)
    address = buffer.address
    buffer.close()
    with pytest.raises(Misuse, match="was freed"):
        stream.launch(kernel, scale_add.launch(4), (address, 0, 4, 1.0))
    with pytest.raises(Misuse, match="lies in no buffer"):
        stream.launch(kernel, scale_add.launch(4), (256, 0, 4, 1.0))


def test_a_graph_with_a_freed_buffer_does_not_replay(device: Simulator) -> None:
    stream, buffer = device.stream(), device.allocate(16)
    graph = stream.capture(lambda: stream.fill(buffer, 0))
    graph.replay(stream)
    stream.synchronize()
    buffer.close()
    with pytest.raises(Misuse, match="was freed"):
        graph.replay(stream)


def test_a_replay_queued_before_the_free_keeps_the_buffer(device: Simulator) -> None:
    stream, buffer = device.stream(), device.allocate(16)
    graph = stream.capture(lambda: stream.fill(buffer, 0))
    graph.replay(stream)
    with pytest.raises(Misuse, match="graph on it is queued"):
        buffer.close()


def test_an_update_does_not_change_a_replay_already_queued(device: Simulator) -> None:
    stream, buffer, staged = device.stream(), device.allocate(4), device.pinned(4)
    graph = stream.capture(lambda: stream.fill(buffer, 1))
    graph.replay(stream)
    graph.update(stream, lambda: stream.fill(buffer, 2))
    stream.copy(staged, buffer)
    stream.synchronize()
    assert staged.array.tolist() == [1] * 4


@pytest.mark.parametrize("offset", [-1, 16])
def test_a_write_beside_a_buffer_loses_the_device(device: Simulator, offset: int) -> None:
    stream, buffer = device.stream(), device.allocate(16)
    at = buffer.address + offset

    def stray() -> None:
        ctypes.memset(at, 0, 1)

    stream.submit(Work("stray", "stray", stray, ()))
    with pytest.raises(DeviceLost, match="beside the buffer of 16 bytes"):
        stream.synchronize()
    with pytest.raises(DeviceLost):
        device.allocate(4)
    device.close()


def test_pool_memory_needs_the_order_of_its_stream(device: Simulator) -> None:
    stream, other, pool = device.stream(), device.stream(), device.pool()
    scratch = pool.allocate(16, stream)
    other.fill(scratch, 0)  # No event says that the allocation came first.
    with pytest.raises(DeviceLost, match="not allocated yet"):
        other.synchronize()


def test_pool_memory_used_after_its_stream_gave_it_back(device: Simulator) -> None:
    stream, other, pool = device.stream(), device.stream(), device.pool()
    scratch, event = pool.allocate(16, stream), device.event()
    stream.record(event)
    other.wait(event)
    other.fill(scratch, 0)
    scratch.close()
    stream.synchronize()
    with pytest.raises(DeviceLost, match="was freed"):
        other.synchronize()


def test_a_library_finds_its_stream_by_handle(device: Simulator) -> None:
    stream = device.stream()
    assert device.stream_of(stream.handle) is stream
    with pytest.raises(Misuse, match="default stream"):
        device.stream_of(0)


def test_a_kernel_that_fails_loses_the_device() -> None:
    def broken(_launch: Launch, _packed: Packed) -> None:
        raise DeviceLost("illegal address", 700)

    device = Simulator(open_image=lambda _: {"broken": broken}.get)
    stream = device.stream()
    kernel = device.load(b"any").kernel("broken", ())
    stream.launch(kernel, Launch(grid=(1, 1, 1), block=(1, 1, 1)), ())
    for _ in range(2):
        with pytest.raises(DeviceLost, match="illegal address"):
            stream.synchronize()


def test_tensor_maps_reach_the_kernel_aligned() -> None:
    seen: list[tuple[int, bytes]] = []

    def look(_launch: Launch, packed: Packed) -> None:
        pointers = (ctypes.c_void_p * 1).from_address(packed.address)
        at = int(pointers[0] or 0)
        seen.append((at % 64, ctypes.string_at(at, 128)))

    device = Simulator(open_image=lambda _: {"look": look}.get)
    stream = device.stream()
    kernel = device.load(b"any").kernel("look", (Parameter("map", "tensor_map"),))
    launch = Launch(grid=(1, 1, 1), block=(1, 1, 1))
    stream.launch(kernel, launch, (bytes(range(128)),))
    stream.synchronize()
    assert seen == [(0, bytes(range(128)))]
    with pytest.raises(Misuse, match="no tensor map of 128 bytes"):
        stream.launch(kernel, launch, (b"short",))


OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 2),  # the stream
        st.sampled_from(["fill", "copy", "scale"]),
        st.integers(0, 3),  # written
        st.integers(0, 3),  # read
        st.integers(0, 9),
    ),
    max_size=14,
)


def enqueue_in_order(
    device: Simulator, streams: list[Any], buffers: list[Any], operations: Any, kernel: Any
) -> None:
    """Each operation on its stream, an event between any two, so that their order is total."""
    last = streams[0]
    for lane, name, written, read, value in operations:
        stream = streams[lane]
        if stream is not last:
            event = device.event()
            last.record(event)
            stream.wait(event)
            last = stream
        apply(name, stream, buffers[written], buffers[read], value, kernel)
    if last is not streams[0]:
        event = device.event()
        last.record(event)
        streams[0].wait(event)


def apply(name: str, stream: Any, to: Any, source: Any, value: int, kernel: Any) -> None:
    if name == "fill":
        stream.fill(to, value)
    elif name == "copy":
        stream.copy(to, source)
    else:
        arguments = (to.address, source.address, 4, float(value))
        stream.launch(kernel, scale_add.launch(4), arguments)


@given(operations=OPERATIONS, seed=st.none() | st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_ordered_program_gives_what_plain_code_gives(operations: Any, seed: int | None) -> None:
    device = Simulator(seed=seed, open_image=scale_add.open_image)
    kernel = device.load(b"any").kernel("scale_add", scale_add.VARIANT.parameters)
    streams = [device.stream() for _ in range(3)]
    buffers = [device.allocate(16) for _ in range(4)]
    plain = [np.zeros(4, np.float32) for _ in range(4)]
    for buffer in buffers:
        streams[0].fill(buffer, 0)
    enqueue_in_order(device, streams, buffers, operations, kernel)
    for _, name, written, read, value in operations:
        if name == "fill":
            plain[written].view(np.uint8)[:] = value
        elif name == "copy":
            plain[written][:] = plain[read]
        else:
            plain[written] *= np.float32(value)
            plain[written] += plain[read]
    assert_buffers(device, streams[0], buffers, plain)
    device.close()


@given(operations=OPERATIONS, seed=st.none() | st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_replay_equals_eager(operations: Any, seed: int | None) -> None:
    results = []
    # A side stream that is not needed would never join, so this program keeps to one stream.
    alone = [(0, *rest) for _, *rest in operations]
    for captured in (False, True):
        device = Simulator(seed=seed, open_image=scale_add.open_image)
        kernel = device.load(b"any").kernel("scale_add", scale_add.VARIANT.parameters)
        stream, buffers = device.stream(), [device.allocate(16) for _ in range(4)]
        for buffer in buffers:
            stream.fill(buffer, 1)

        def enqueue(
            device: Simulator = device,
            stream: Any = stream,
            buffers: Any = buffers,
            kernel: Any = kernel,
        ) -> None:
            enqueue_in_order(device, [stream], buffers, alone, kernel)

        work: Callable[[], None] = enqueue
        if captured:
            graph = stream.capture(enqueue)

            def work(graph: Any = graph, stream: Any = stream) -> None:
                graph.replay(stream)

        work()
        work()
        results.append([_bytes(device, stream, buffer) for buffer in buffers])
        device.close()
    assert results[0] == results[1]


def assert_buffers(device: Simulator, stream: Any, buffers: Any, wanted: Any) -> None:
    for buffer, values in zip(buffers, wanted, strict=True):
        assert _bytes(device, stream, buffer) == values.tobytes()


def _bytes(device: Simulator, stream: Any, buffer: Any) -> bytes:
    staged = device.pinned(buffer.nbytes)
    stream.copy(staged, buffer)
    stream.synchronize()
    return bytes(staged.array.tobytes())

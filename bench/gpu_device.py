"""The first part of the GPU run: the chip's facts, and a short pass over the device layer."""

from collections.abc import Callable

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_chip import Clocks
from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.kernels.driver import DeviceLost, Misuse, OutOfMemory, part
from diffusion_rt.kernels.driver.interface import Buffer


def facts(sink: Sink) -> None:
    """What the chip is, by the driver's own libraries."""
    chip = sink.chip
    size = f"{chip.memory / 2**30:.1f} GiB, L2 {chip.l2_bytes / 2**20:.0f} MiB"
    sink.say("chip", "right", f"{chip.name}, sm_{chip.arch}, {chip.multiprocessors} SMs, {size}")
    if chip.simulated:
        return
    clocks = Clocks(chip.name)
    now = ", ".join(f"{name} {mhz}" for name, mhz in clocks.now().items()) or "clocks unknown"
    sink.say("driver", "right", f"{clocks.driver() or 'unknown'}, CUDA {chip.cuda}; idle: {now}")


def layer(sink: Sink) -> None:
    """The device layer does what its contract says, in a few seconds and without a test runner."""
    bench = Bench(simulated=sink.chip.simulated)
    for name, rule in RULES.items():
        try:
            rule(bench)
        except DeviceLost as error:
            sink.failed(f"device.{name}", str(error), {})
            raise
        except Exception as error:
            sink.failed(f"device.{name}", f"{type(error).__name__}: {error}", {})
        else:
            sink.checked(f"device.{name}", 0.0, {})
        bench.clear()
    bench.close()


def _same(bench: Bench, buffer: Buffer, wanted: Array) -> None:
    np.testing.assert_array_equal(bench.get(buffer, wanted.shape, wanted.dtype), wanted)


def copies(bench: Bench) -> None:
    """Bytes there, between and back, whole and in part."""
    values = np.random.default_rng(0).integers(0, 256, 1001, np.uint8)
    source, target = bench.put(values), bench.poisoned(1001)
    bench.stream.copy(part(target, 0, 500), part(source, 0, 500))
    bench.stream.fill(part(target, 501, 500), 7)
    wanted = np.concatenate([values[:500], [np.uint8(0xFF)], np.full(500, 7, np.uint8)])
    _same(bench, target, wanted)


def events(bench: Bench) -> None:
    """A stream that waits for another's event sees what came before it."""
    side = bench.device.stream()
    source, target = bench.poisoned(1 << 16), bench.poisoned(1 << 16)
    event, start, end = (bench.device.event(timed=timed) for timed in (False, True, True))
    bench.stream.record(start)
    bench.stream.fill(source, 3)
    bench.stream.record(event)
    side.wait(event)
    side.copy(target, source)
    side.synchronize()
    bench.stream.record(end)
    bench.stream.synchronize()
    assert event.done(), "an event behind finished work has not passed"
    assert end.elapsed_ms(start) >= 0, "time runs backwards"
    _same(bench, target, np.full(1 << 16, 3, np.uint8))
    side.close()


def graphs(bench: Bench) -> None:
    """A capture runs nothing, a replay all of it, an update takes new values."""
    target, ones = bench.put(np.zeros(64, np.uint8)), bench.put(np.ones(64, np.uint8))
    with bench.stream.capture(lambda: bench.stream.copy(target, ones)) as graph:
        _same(bench, target, np.zeros(64, np.uint8))
        graph.replay(bench.stream)
        _same(bench, target, np.ones(64, np.uint8))
        twos = bench.put(np.full(64, 2, np.uint8))
        graph.update(bench.stream, lambda: bench.stream.copy(target, twos))
        graph.replay(bench.stream)
        _same(bench, target, np.full(64, 2, np.uint8))


def captures_forbid(bench: Bench) -> None:
    """Waiting inside a capture is refused, and the stream is usable again."""
    target = bench.put(np.zeros(64, np.uint8))

    def wait() -> None:
        bench.stream.fill(target, 9)
        bench.stream.synchronize()

    try:
        bench.stream.capture(wait)
    except Misuse:
        _same(bench, target, np.zeros(64, np.uint8))
        return
    raise AssertionError("a wait inside a capture is not refused")


def memory(bench: Bench) -> None:
    """Too much memory is told apart and survived; a pool gives and takes in stream order."""
    total = bench.device.memory().total
    try:
        bench.device.allocate(total + 1)
    except OutOfMemory:
        pass
    else:
        raise AssertionError("more memory than there is was given out")
    target = bench.poisoned(256)
    with bench.device.pool() as pool:
        for byte in (1, 2):
            with pool.allocate(256, bench.stream) as scratch:
                bench.stream.fill(scratch, byte)
                bench.stream.copy(target, scratch)
        _same(bench, target, np.full(256, 2, np.uint8))


RULES: dict[str, Callable[[Bench], None]] = {
    "copies": copies,
    "events": events,
    "graphs": graphs,
    "captures_forbid": captures_forbid,
    "memory": memory,
}

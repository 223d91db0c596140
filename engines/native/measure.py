"""Measure the ways to run the operations of a program, where they stand.

Operations of the same sizes run one after the other in one captured graph, each with its own
weights, so that weights come from memory as they do in a step, and not from a cache that the last
repeat has filled.
"""

from collections.abc import Callable, Sequence
from math import inf
from statistics import median

from diffusion_rt.engines.native.executor import Addresses, Program
from diffusion_rt.engines.native.tactics import Tactics
from diffusion_rt.engines.native.ways import Enqueue, LibraryFailed, Load, Way, Ways, enqueued
from diffusion_rt.kernels.driver import Device
from diffusion_rt.kernels.driver.interface import Stream

REPEATS = 5
MOST_TOGETHER = 24  # operations in one graph

Progress = Callable[[int, int], None]  # (done, total), in sizes


def measure(
    program: Program,
    places: Addresses,
    tactics: Tactics,
    *,
    device: Device,
    stream: Stream,
    kernel: Load,
    progress: Progress | None = None,
) -> int:
    """Note the fastest way for every size that is not known yet; how many those were.

    `places` are those of an arena with `program.most`; activations may hold any numbers. A way of a
    library that fails is not taken. Raises DeviceError where a kernel fails.
    """
    groups: dict[str, list[Ways]] = {}
    for found in program.options:
        if not tactics.knows(found):
            groups.setdefault(found.sizes, []).append(found)
    for number, members in enumerate(groups.values()):
        if progress is not None:
            progress(number, len(groups))
        names = [way.name for way in members[0].ways]
        alike = [found for found in members if [way.name for way in found.ways] == names]
        alike = alike[:MOST_TOGETHER]
        times = [
            _microseconds([found.ways[place] for found in alike], places, device, stream, kernel)
            for place in range(len(names))
        ]
        fastest = min(range(len(times)), key=times.__getitem__)
        tactics.put(members[0], members[0].ways[fastest], times[fastest])
    if progress is not None:
        progress(len(groups), len(groups))
    return len(groups)


def _microseconds(
    ways: Sequence[Way], places: Addresses, device: Device, stream: Stream, kernel: Load
) -> float:
    """Of one operation: the median of some replays, after one that warms up; inf where it fails."""
    try:
        calls = [enqueued(call, kernel) for way in ways for call in way.calls(places)]
        return _median(calls, device, stream) / len(ways)
    except LibraryFailed:
        stream.synchronize()  # What was put on the stream before it failed.
        return inf


def _median(calls: Sequence[Enqueue], device: Device, stream: Stream) -> float:
    def enqueue() -> None:
        for call in calls:
            call(stream)

    enqueue()
    times = []
    with (
        stream.capture(enqueue) as graph,
        device.event(timed=True) as start,
        device.event(timed=True) as end,
    ):
        for _ in range(REPEATS):
            stream.record(start)
            graph.replay(stream)
            stream.record(end)
            end.synchronize()
            times.append(1000 * end.elapsed_ms(start))
    return median(times)

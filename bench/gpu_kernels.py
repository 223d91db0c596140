"""Two parts of the GPU run: kernels against their references, and how long they take."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np

from diffusion_rt.bench import gpu_shapes
from diffusion_rt.bench.gpu_bench import Bench
from diffusion_rt.bench.gpu_case import EVALUATIONS, Built, Case, run
from diffusion_rt.bench.gpu_cases import cases
from diffusion_rt.bench.gpu_products import ways
from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.bench.spread import median
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import CompileError
from diffusion_rt.kernels.driver import DeviceLost, OutOfMemory, part

LAUNCHES = 32  # of one timed graph
REPEATS = 50  # replays of a timed graph
COPY_BYTES = 2 << 30  # of the copy that bandwidth is measured by, each way
COPY_BLOCK = 64 << 20  # random bytes that it repeats
MOST_SETS = 24  # of inputs, to keep the caches cold
SHOWN = 16  # of the cases, in the short table


def check(sink: Sink, chosen: Sequence[Case] | None = None) -> None:
    """Every case against its float64 reference, twice: the second time to the same bits.

    `chosen` are the cases; without them all there are, and kernels without one are named.
    """
    bench = Bench(simulated=sink.chip.simulated)
    found = cases(tiny=bench.simulated) if chosen is None else chosen
    for number, case in enumerate(found):
        if sink.late:
            sink.not_run(case.name, "out of time from here on")
            return
        guarded(sink, bench, case, partial(_check, sink, bench, case, number))
    if chosen is None and (left := _without_a_case(bench)):
        families = dict.fromkeys(name.split("_")[0].split(".")[0] for name in left)
        sink.say(
            "kernels", "noted", f"{len(left)} have no case of their own: {', '.join(families)}"
        )
    bench.close()


def _without_a_case(bench: Bench) -> list[str]:
    """Kernels that no part checks by themselves; models run some of them."""
    shapes = gpu_shapes.step(1024, 1024)
    seen = {variant for case in cases(tiny=False) for variant in case.variants}
    for shape in shapes:
        if isinstance(shape, gpu_shapes.Gemm | gpu_shapes.Conv | gpu_shapes.Attention):
            seen |= {way.variant for way in ways(shape, bench.device.limits)}
    return sorted(set(CATALOGUE) - seen)


def _check(sink: Sink, bench: Bench, case: Case, seed: int) -> None:
    built = case.build(bench, seed)
    first, second = run(bench, built), run(bench, built)
    error = built.check(first)
    moved = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    if error <= 1 and moved:
        sink.failed(case.name, f"{', '.join(moved)} differs between two runs: a race", case.setting)
    else:
        sink.checked(case.name, error, case.setting)


def measure(
    sink: Sink, chosen: Sequence[Case] | None = None, repeats: int = REPEATS, peak: float = math.inf
) -> None:
    """Every case by replays of a graph, and a plain copy that says what the memory can do.

    `peak` is what the chip's products come to at most, operations a second, where that is known.
    """
    bench = Bench(simulated=sink.chip.simulated)
    roof = Roof(_copy(sink, bench), peak, 2 if bench.simulated else repeats)
    found = cases(tiny=bench.simulated) if chosen is None else chosen
    for number, case in enumerate(found):
        if sink.late:
            sink.not_run(case.name, "out of time from here on")
            return
        shown = number < SHOWN
        guarded(sink, bench, case, partial(_measure, sink, bench, case, roof, shown))
    bench.close()


@dataclass(frozen=True, slots=True)
class Roof:
    """What a chip can do at most, and how often a case is timed."""

    bandwidth: float  # bytes a second
    peak: float  # operations a second
    repeats: int

    def floor(self, case: Case) -> float:
        """Seconds that no kernel for this case goes below, but where a cache holds its bytes."""
        return max(case.nbytes / self.bandwidth, case.flop / self.peak)


def _copy(sink: Sink, bench: Bench) -> float:
    """Bytes a second of a device-to-device copy, read and written counted apart."""
    nbytes = 1 << 12 if bench.simulated else COPY_BYTES
    source, target = bench.poisoned(nbytes), bench.poisoned(nbytes)
    if not bench.simulated:
        # Not one value all over: memory may take constant bytes faster.
        block = COPY_BLOCK
        bench.refill(source, np.random.default_rng(0).integers(0, 256, block, np.uint8))
        for offset in range(block, nbytes, block):
            bench.stream.copy(part(source, offset, block), part(source, 0, block))
    seconds = bench.times([lambda: bench.stream.copy(target, source)], 10)
    middle = sink.timed("copy", seconds, {"copied": nbytes}, nbytes=2 * nbytes)
    bench.clear()
    return 2 * nbytes / middle if middle else float("inf")


def _measure(sink: Sink, bench: Bench, case: Case, roof: Roof, shown: bool) -> None:
    floor = roof.floor(case)
    built = [case.build(bench, 0)]
    if case.cold:
        # Each launch finds its data evicted by those between; where it is, is the device's choice.
        wanted = -(-2 * sink.chip.l2_bytes // case.nbytes) + 1
        built += [case.build(bench, n) for n in range(1, min(wanted, MOST_SETS))]
    for cache, sets in (("cold", built), ("warm", built[:1])):
        if cache == "cold" and not case.cold:
            continue
        pieces = pieces_of(sets, 4 if bench.simulated else LAUNCHES)
        seconds = bench.times(pieces, roof.repeats)
        note = f"{floor / median(seconds):.0%} of the floor's speed" if median(seconds) else ""
        setting = {**case.setting, "cache": cache}
        shown = shown and (cache == "cold" or not case.cold)
        sink.timed(
            case.name,
            seconds,
            setting,
            nbytes=case.nbytes,
            flop=case.flop,
            peak_device=bench.used,
            note=note,
            shown=shown,
        )


def pieces_of(sets: list[Built], most: int) -> list[Callable[[], None]]:
    """Launches in turn over several inputs, and at the first of them whatever must be set back."""
    launches = min(max(most, len(sets)), EVALUATIONS)
    pieces = [built.enqueue for built in islice(cycle(sets), launches)]
    rewinds = [built.rewind for built in sets if built.rewind is not None]

    def first() -> None:
        for rewind in rewinds:
            rewind()
        sets[0].enqueue()

    return [first, *pieces[1:]]


def guarded(sink: Sink, bench: Bench, case: Case, work: Callable[[], None]) -> None:
    """One case; what goes wrong in it is its row, and the next goes on where the device lives."""
    try:
        work()
    except CompileError as error:
        if "does not compile" in str(error):
            sink.failed(case.name, str(error), case.setting)
        else:
            sink.not_run(case.name, str(error))
    except OutOfMemory as error:
        sink.not_run(case.name, str(error))
    except DeviceLost as error:
        sink.failed(case.name, str(error), case.setting)
        raise
    except Exception as error:
        sink.failed(case.name, f"{type(error).__name__}: {error}", case.setting)
    bench.clear()

"""Parts of the GPU run: every way to run a shape is checked, and the fastest one timed.

Attention, products and convolutions of one step of SDXL at 1024x1024 with guidance, by our kernels.
"""

from collections.abc import Iterable
from functools import partial

from diffusion_rt.bench import gpu_shapes
from diffusion_rt.bench.gpu_bench import Bench
from diffusion_rt.bench.gpu_case import run
from diffusion_rt.bench.gpu_kernels import LAUNCHES, MOST_SETS, guarded, pieces_of
from diffusion_rt.bench.gpu_products import Geglu, Shape, Way, ways
from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.bench.spread import median
from diffusion_rt.kernels.driver import Limits

QUICK, REPEATS = 4, 30  # replays: to choose a way, and of the chosen one
SHOWN = 6  # of the shapes of a kind, in the short table
MOST_WAYS = 6  # of one family that are tried, the likely fastest
# Shapes that a simulator can do in no time, and that nothing divides.
TINY: dict[type[Shape], Shape] = {
    gpu_shapes.Attention: gpu_shapes.Attention(1, 2, 9, 17),
    gpu_shapes.Gemm: gpu_shapes.Gemm(65, 80, 64),
    Geglu: Geglu(65, 160, 64),
    gpu_shapes.Conv: gpu_shapes.Conv(1, 3, 5, 8, 16),
}


def attention(sink: Sink) -> None:
    """Attention over all pixels and over the prompt."""
    _all(sink, gpu_shapes.Attention)


def products(sink: Sink) -> None:
    """Every product, 1x1 convolutions among them; feed forwards with their gate too."""
    _all(sink, gpu_shapes.Gemm)
    _all(sink, Geglu)


def convolutions(sink: Sink) -> None:
    """Every 3x3 convolution."""
    _all(sink, gpu_shapes.Conv)


def _all(sink: Sink, kind: "type[Shape]") -> None:
    """Each shape of a kind, the most work first, and what they come to in one step."""
    tiny = sink.chip.simulated
    bench = Bench(simulated=tiny)
    name = kind.__name__.lower()
    shapes: list[tuple[Shape, int]] = [(TINY[kind], 1)]
    if not tiny:
        shapes = list(_gated() if kind is Geglu else _plain(kind))
    total, missing = 0.0, 0
    for number, (shape, count) in enumerate(shapes):
        if sink.late:
            sink.not_run(name, "out of time from here on")
            return
        seconds = best(sink, bench, shape, count, shown=number < SHOWN)
        missing += seconds is None
        total += (seconds or 0.0) * count
    if not tiny and not missing:
        note = f"{total * 1e3:.2f} ms, the sum of the medians above times their counts"
        sink.say(f"all {name}", "timed", f"one step: {note}")
    bench.close()


def _plain(kind: type[Shape]) -> Iterable[tuple[Shape, int]]:
    found: list[tuple[Shape, int]] = []
    for shape, count in _step().items():
        if not isinstance(shape, gpu_shapes.LayerNorm | gpu_shapes.GroupNorm):
            found += [(shape, count)] if isinstance(shape, kind) else []
    return sorted(found, key=lambda item: -item[0].flop * item[1])


def _gated() -> Iterable[tuple[Geglu, int]]:
    """The products that widen eightfold are those of feed forwards."""
    for shape, count in gpu_shapes.of_kind(_step(), gpu_shapes.Gemm):
        if shape.n == 8 * shape.k:
            yield Geglu(shape.m, shape.n, shape.k), count


def _step() -> gpu_shapes.Shapes:
    return gpu_shapes.step(1024, 1024)


def best(sink: Sink, bench: Bench, shape: Shape, count: int, *, shown: bool = True) -> float | None:
    """The seconds of the fastest way that is right; None where there is none."""
    right: list[tuple[float, Way]] = []
    for way in _tried(shape, bench.device.limits, tiny=bench.simulated):
        if sink.late:
            break
        found: list[float] = []
        guarded(sink, bench, way, partial(_quick, sink, bench, way, found))
        right += [(seconds, way) for seconds in found]
    if not right:
        sink.not_run(type(shape).__name__.lower(), f"no way was right: {shape}")
        return None
    fastest = min(right, key=lambda pair: pair[0])[1]
    times: list[float] = []
    guarded(sink, bench, fastest, partial(_measure, sink, bench, fastest, count, shown, times))
    return times[0] if times else None


def _tried(shape: Shape, limits: Limits, *, tiny: bool) -> list[Way]:
    """The likely fastest ways of each family, for one chip and for any; on a simulator one each."""
    families: dict[bool, list[Way]] = {}
    for way in ways(shape, limits):
        families.setdefault("sm90" in way.variant, []).append(way)
    most = 1 if tiny else MOST_WAYS
    return [way for family in families.values() for way in family[:most]]


def _quick(sink: Sink, bench: Bench, way: Way, found: list[float]) -> None:
    """Check a way, twice to the same bits, and take its time for a first impression."""
    built = way.build(bench, 0)
    first, second = (run(bench, built)["output"] for _ in range(2))
    error = built.check({"output": first})
    if error <= 1 and first.tobytes() != second.tobytes():
        sink.failed(way.name, "differs between two runs: a race", way.setting)
        return
    sink.checked(way.name, error, way.setting)
    if error <= 1:
        seconds = bench.times([built.enqueue] * 4, 2 if bench.simulated else QUICK)
        found.append(median(seconds))


def _measure(
    sink: Sink, bench: Bench, way: Way, count: int, shown: bool, times: list[float]
) -> None:
    wanted = -(-2 * sink.chip.l2_bytes // way.nbytes) + 1
    sets = [way.build(bench, n) for n in range(1 if bench.simulated else min(wanted, MOST_SETS))]
    for cache, built in (("cold", sets), ("warm", sets[:1])):
        launches = 4 if bench.simulated else min(LAUNCHES, 12)
        seconds = bench.times(pieces_of(built, launches), 2 if bench.simulated else REPEATS)
        setting = {**way.setting, "of": "step", "count": count, "cache": cache}
        middle = sink.timed(
            way.name,
            seconds,
            setting,
            nbytes=way.nbytes,
            flop=way.flop,
            peak_device=bench.used,
            shown=shown and cache == "cold",
        )
        times.append(middle)

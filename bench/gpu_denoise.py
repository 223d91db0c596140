"""A part of the GPU run: a captured denoise with a stand-in for the model, and the host's share.

The stand-in is a layer normalisation for each row of guidance, whose weight and bias are the
timestep's projections: so every kernel of a step runs, in the order it will have around the UNet.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_norms import EPSILON
from diffusion_rt.bench.gpu_rows import Sink, excess
from diffusion_rt.bench.gpu_steps import PHI, latents, plain_step
from diffusion_rt.kernels import guided_step, layer_norm, prepare, select_rows
from diffusion_rt.kernels.step_table import ALL_FINITE, CURSOR, MAX_ORDER, cursor, step_table

AHEAD = 4  # evaluations the host may run ahead
COLUMNS = 128  # of the stand-in
ROWS = 2
MOST = 50  # evaluations
TURNS = 15  # of the request that is timed
# Images, elements of one, evaluations of a request, and of the one that is timed.
FULL, TINY = (1, 65536, 20, MOST), (1, 256, 3, 4)
# A float16 near 1 that rounds to its neighbour, through a guidance of 3 and a few steps; that is
# rare, so the root of the mean square stays far below.
LEAST_MOST = 8 * 2.0**-11
LEAST_USUAL = LEAST_MOST / 32


class Loop:
    """All buffers of a bucket, and one captured evaluation."""

    def __init__(self, bench: Bench, images: int, elements: int) -> None:
        self.bench, self.images, self.elements = bench, images, elements
        self.cursor = bench.poisoned(CURSOR.itemsize)
        self.steps = bench.poisoned(MOST * 192)
        self.state = bench.poisoned(MAX_ORDER * images * elements * 4)
        self.noise = bench.poisoned(MOST * images * elements * 4)
        self.input = bench.poisoned(ROWS * images * elements * 2)
        self.prediction = bench.poisoned(ROWS * images * elements * 2)
        self.partial = bench.poisoned(guided_step.partial_bytes(elements, images))
        self.row_bytes = ROWS * 2 * COLUMNS * 2
        self.projections = bench.poisoned(MOST * self.row_bytes)
        self.projection = bench.poisoned(self.row_bytes)
        entry = (self.projections.address, self.projection.address, self.row_bytes)
        self.tables = bench.put(select_rows.tables([entry]))
        for name in NAMES:
            bench.kernel(name)  # Nothing may load inside the capture.
        bench.stream.synchronize()
        self.graph = bench.stream.capture(self.evaluation)
        self.events = [bench.device.event() for _ in range(AHEAD)]

    def evaluation(self) -> None:
        """What is captured."""
        bench, sizes = self.bench, (self.elements, self.images)
        ends = (self.elements, ROWS)
        bench.launch("select_rows", select_rows.launch(1, self.row_bytes), self.cursor, self.tables)
        places = (self.cursor, self.steps, self.state, self.input)
        bench.launch("prepare.float16", prepare.launch(*sizes), *places, *ends)
        one = self.images * self.elements
        for row in range(ROWS):
            at = self.projection.address + row * 2 * COLUMNS * 2
            bench.launch(
                "layer_norm.float16",
                layer_norm.launch(one // COLUMNS, COLUMNS),
                *(self.input.address + 2 * row * one, at, at + 2 * COLUMNS),
                *(self.prediction.address + 2 * row * one, one // COLUMNS, COLUMNS, EPSILON),
            )
        tables = (self.cursor, self.steps, self.prediction)
        statistics = guided_step.statistics_launch(*sizes)
        bench.launch("guidance_statistics.float16", statistics, *tables, self.partial, *ends)
        rest = (self.noise, self.partial, self.state)
        bench.launch("guided_step.float16", guided_step.launch(*sizes), *tables, *rest, *ends)

    def fill(self, plan: Array, start: Array, noise: Array, projections: Array) -> None:
        """Bring a request's tables to the addresses that were captured."""
        state = np.full((MAX_ORDER, self.images, self.elements), np.nan, np.float32)
        state[: plan[0]["order"]] = 0
        state[0] = start
        for buffer, values in (
            (self.cursor, cursor(len(plan))),
            (self.steps, plan),
            (self.state, state),
            (self.noise, noise),
            (self.projections, projections),
        ):
            self.bench.refill(buffer, values)

    def replay(self, count: int) -> list[float]:
        """All evaluations, at most four ahead; the host's seconds in each, waiting left out."""
        stream, spent = self.bench.stream, []
        for index in range(count):
            event = self.events[index % AHEAD]
            if index >= AHEAD:
                event.synchronize()
            begun = time.perf_counter()
            self.graph.replay(stream)
            stream.record(event)
            spent.append(time.perf_counter() - begun)
        stream.synchronize()
        return spent

    def result(self) -> tuple[Array, Any]:
        """The latents [images, elements], and the cursor."""
        shape = (MAX_ORDER, self.images, self.elements)
        state = self.bench.get(self.state, shape, np.float32)
        return state[0], self.bench.get(self.cursor, (1,), CURSOR)[0]


NAMES = (
    "select_rows",
    "prepare.float16",
    "layer_norm.float16",
    "guidance_statistics.float16",
    "guided_step.float16",
)


def request(seed: int, order: int, count: int, images: int, elements: int) -> tuple[Array, ...]:
    """A plan that stays bounded, its start, noise and projections."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.3 / (order + 2), (count, order, order + 2))
    weights[:, 0, 0] += 0.6
    draws = rng.random(count) < 0.5
    weights[~draws, :, -1] = 0
    plan = step_table(rng.uniform(0.5, 1, count), weights, draws, 3.0, PHI if seed % 2 else 0.0)
    start = latents(seed, 1, images, elements)[0]
    noise = latents(seed + 1, int(draws.sum()), images, elements)
    projections = rng.normal(0, 0.5, (count, ROWS, 2, COLUMNS)).astype(np.float16)
    return plan, start, noise, projections


def on_host(values: tuple[Array, ...], *, plain: bool) -> Array:
    """The same loop in NumPy, float64 or plain float32, to float16 where the device is."""
    plan, start, noise, projections = values
    order = int(plan[0]["order"])
    kind = np.float32 if plain else np.float64
    state = np.zeros((order, *start.shape), kind)
    state[0] = start
    for index, step in enumerate(plan):
        seen = np.asarray(state[0] * kind(step["c_in"])).astype(np.float16)
        prediction = np.stack([_model(seen, row, kind) for row in projections[index]])
        fresh = noise[step["noise"]] if step["noise"] >= 0 else None
        if plain:
            state = plain_step(prediction, fresh, state, step)
        else:
            state = guided_step.reference(prediction, fresh, state, step)
    return np.asarray(state[0])


def _model(seen: Array, projection: Array, kind: type[np.floating[Any]]) -> Array:
    """The stand-in for one row of guidance, float16 [images, elements]."""
    x = seen.reshape(-1, COLUMNS).astype(kind)
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + kind(EPSILON))
    weight, bias = projection.astype(kind)
    return np.asarray(normal * weight + bias).astype(np.float16).reshape(seen.shape)


def denoise(sink: Sink) -> None:
    """One capture, several requests: latents against NumPy's, then the times of a long one."""
    tiny = sink.chip.simulated
    bench = Bench(simulated=tiny)
    images, elements, count, long = TINY if tiny else FULL
    loop = Loop(bench, images, elements)
    for number, (order, steps) in enumerate(((2, count), (1, count + 3), (5, count), (3, 1))):
        setting = {"order": order, "evaluations": steps, "images": images, "elements": elements}
        values = request(number, order, steps, images, elements)
        loop.fill(*values)
        loop.replay(steps)
        found, counted = loop.result()
        if counted["index"] != steps or counted["bad"] != ALL_FINITE:
            where = f"the cursor stands at {counted['index']}, not finite from {counted['bad']}"
            sink.failed("denoise", where, setting)
            continue
        sink.checked("denoise", error_of(found, values), setting)
    values = request(1, 2, long, images, elements)
    setting = {"evaluations": len(values[0]), "images": images, "elements": elements}
    _times(sink, bench, loop, values, setting)
    bench.close()


def error_of(found: Array, values: tuple[Array, ...]) -> float:
    """Against the loop in float64, in units of what is allowed.

    Where plain NumPy happens to round every float16 as float64 does, a neighbour is still allowed.
    """
    truth = on_host(values, plain=False)
    off = np.abs(found - truth)
    rare = max(float(off.max()) / LEAST_MOST, float(np.sqrt((off**2).mean())) / LEAST_USUAL)
    return min(excess(found, np.asarray(on_host(values, plain=True), np.float32), truth), rare)


def _times(
    sink: Sink, bench: Bench, loop: Loop, values: tuple[Array, ...], setting: dict[str, Any]
) -> None:
    count = len(values[0])
    spent: list[float] = []
    walls: list[float] = []
    loop.fill(*values)
    for turn in range(2 if bench.simulated else TURNS):
        bench.refill(loop.cursor, cursor(count))
        begun = time.perf_counter()
        hosts = loop.replay(count)
        if turn:  # The first is the warm-up.
            walls.append((time.perf_counter() - begun) / count)
            spent += hosts
    sink.timed("denoise.host", spent, setting, note="of the host in an evaluation, waits left out")
    sink.timed("denoise.wall", walls, setting, note="an evaluation from replay to replay")
    pieces = [_from_the_first(bench, loop, count), *[loop.evaluation] * (count - 1)]
    seconds = bench.times(pieces, 2 if bench.simulated else TURNS)
    sink.timed("denoise.device", seconds, setting, note="an evaluation in one long graph")


def _from_the_first(bench: Bench, loop: Loop, count: int) -> Callable[[], None]:
    """Set the cursor back inside a graph, then run one evaluation."""
    pristine = bench.put(cursor(count))

    def first() -> None:
        bench.stream.copy(loop.cursor, pristine)
        loop.evaluation()

    return first

"""A whole denoise as it runs on a device: captured once, replayed, never waited for inside.

The model is a stand-in that reads its input and its timestep's projection where the UNet would.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels import guided_step, prepare, select_rows
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import Launch, Parameter
from diffusion_rt.kernels.step_table import (
    ALL_FINITE,
    CURSOR,
    MAX_ORDER,
    STEP,
    cursor,
    step_table,
)
from support.kernel_bench import KernelBench

Array = NDArray[Any]
Request = tuple[Array, Array, Array, Array]
NAMES = (
    "prepare.float16",
    "guidance_statistics.float16",
    "guided_step.float16",
    "select_rows",
)
MODEL = Variant(
    name="stand_in_model",
    kernel="stand_in_model",
    source=str(Path(__file__).resolve().parents[1] / "support" / "stand_in_model.cu"),
    constants=(),
    parameters=(
        Parameter("seen", "pointer", 2),
        Parameter("projection", "pointer", 4),
        Parameter("prediction", "pointer", 2),
        Parameter("count", "int32"),
    ),
    registers=64,
)
VARIANTS = [*(CATALOGUE[name] for name in NAMES), MODEL]
AHEAD = 4  # evaluations the host may run ahead


class Loop:
    """All buffers of a bucket, and one captured evaluation."""

    def __init__(self, bench: KernelBench, images: int, elements: int, rows: int) -> None:
        self.bench = bench
        self.images, self.elements, self.rows = images, elements, rows
        self.shape = (images, elements)
        self.cursor = bench.poisoned([CURSOR.itemsize], np.uint8)
        self.steps = bench.poisoned([50 * STEP.itemsize], np.uint8)
        self.state = bench.poisoned([MAX_ORDER, images, elements], "f4")
        self.noise = bench.poisoned([50, images, elements], "f4")
        self.input = bench.poisoned([rows, images, elements], "f2")
        self.prediction = bench.poisoned([rows, images, elements], "f2")
        self.partial = bench.poisoned([guided_step.partial_bytes(elements, images)], np.uint8)
        self.projections = bench.poisoned([50, 16], np.uint8)
        self.projection = bench.poisoned([16], np.uint8)
        self.tables = bench.put(
            select_rows.tables([(self.projections.address, self.projection.address, 16)])
        )
        bench.stream.synchronize()
        self.graph = bench.stream.capture(self._evaluation)

    def _evaluation(self) -> None:
        bench, sizes = self.bench, (self.elements, self.images)
        bench.run("select_rows", select_rows.launch(1, 16), self.cursor, self.tables)
        bench.run(
            "prepare",
            prepare.launch(*sizes),
            *(self.cursor, self.steps, self.state, self.input, self.elements, self.rows),
        )
        count = self.images * self.elements
        launch = Launch(grid=(-(-count // 128), self.rows, 1), block=(128, 1, 1))
        bench.run("stand_in_model", launch, self.input, self.projection, self.prediction, count)
        bench.run(
            "guidance_statistics",
            guided_step.statistics_launch(*sizes),
            *(self.cursor, self.steps, self.prediction, self.partial, self.elements, self.rows),
        )
        bench.run(
            "guided_step",
            guided_step.launch(*sizes),
            *(self.cursor, self.steps, self.prediction, self.noise, self.partial, self.state),
            *(self.elements, self.rows),
        )

    def fill(self, plan: Array, start: Array, noise: Array, projections: Array) -> None:
        """Bring a new request's tables to the same addresses."""
        state = np.full((MAX_ORDER, *self.shape), np.nan, np.float32)
        state[: plan[0]["order"]] = 0
        state[0] = start
        for place, values in (
            (self.cursor, cursor(len(plan))),
            (self.steps, plan),
            (self.state, state),
            (self.noise, noise),
            (self.projections, projections),
        ):
            if values.size:
                source = self.bench.put(values)
                self.bench.stream.copy(place, source)
        self.bench.stream.synchronize()

    def replay(self, count: int) -> None:
        """Enqueue evaluations, at most four ahead of the device."""
        stream = self.bench.stream
        events: list[Any] = []
        for index in range(count):
            if index >= AHEAD:
                events[index - AHEAD].synchronize()
            self.graph.replay(stream)
            events.append(self.bench.device.event())
            stream.record(events[-1])
        stream.synchronize()


def model(seen: Array, projection: Array) -> Array:
    """What stand_in_model.cu computes."""
    scale = 1 + 0.1 * np.arange(len(seen), dtype=np.float32)[:, None, None]
    found: Array = np.tanh(seen.astype(np.float32) * scale + projection[0]) + projection[1]
    return found.astype(np.float16)


def eager(plan: Array, start: Array, noise: Array, projections: Array, rows: int) -> Array:
    """The loop in float64, from the kernels' references."""
    order = int(plan[0]["order"])
    state = np.zeros((order, *start.shape))
    state[0] = start
    for index, step in enumerate(plan):
        seen = prepare.reference(state, step, rows).astype(np.float16)
        prediction = model(seen, projections[index])
        fresh = noise[step["noise"]] if step["noise"] >= 0 else None
        state = guided_step.reference(prediction, fresh, state, step)
    result: Array = state[0]
    return result


def request(seed: int, order: int, count: int, rows: int, images: int, elements: int) -> Request:
    """A plan that stays bounded, its start, noise and projections."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.4 / (order + 2), (count, order, order + 2))
    weights[:, 0, 0] += 0.5
    draws = rng.random(count) < 0.5
    weights[~draws, :, -1] = 0
    phi = 0.7 if seed % 2 else 0.0
    plan = step_table(rng.uniform(0.2, 1, count), weights, draws, 2.0, phi)
    start = rng.normal(size=(images, elements)).astype(np.float32)
    noise = rng.normal(size=(int(draws.sum()), images, elements)).astype(np.float32)
    projections = rng.normal(size=(count, 4)).astype(np.float32)
    return plan, start, noise, projections


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", [None, 3])
def test_one_capture_serves_every_sampler_and_length(rows: int, seed: int | None) -> None:
    bench = KernelBench(VARIANTS, seed=seed)
    images, elements = 2, 300
    loop = Loop(bench, images, elements, rows)
    for number, (order, count) in enumerate(((1, 6), (2, 9), (5, 4), (3, 1))):
        values = request(number, order, count, rows, images, elements)
        loop.fill(*values)
        loop.replay(count)
        state = bench.get(loop.state, (MAX_ORDER, images, elements), "f4")
        truth = eager(*values, rows)
        # A float16 prediction may round to its neighbour (2^-11 of a number near 1), guidance of 2
        # doubles it, and later steps carry on.
        assert np.abs(state[0] - truth).max() < 4 * 2.0**-11
        counted = bench.get(loop.cursor, [1], CURSOR)[0]
        assert counted["index"] == count
        assert counted["bad"] == ALL_FINITE
        assert np.isnan(state[order:]).all()


def test_a_replay_too_many_changes_nothing() -> None:
    bench = KernelBench(VARIANTS)
    loop = Loop(bench, 1, 64, 2)
    loop.fill(*request(1, 2, 3, 2, 1, 64))
    loop.replay(3)
    before = bench.get(loop.state, [MAX_ORDER * 64], "f4")
    loop.replay(2)
    np.testing.assert_array_equal(bench.get(loop.state, [MAX_ORDER * 64], "f4"), before)
    assert bench.get(loop.cursor, [1], CURSOR)[0]["index"] == 3


def test_the_step_where_numbers_break_is_known_at_the_end() -> None:
    bench = KernelBench(VARIANTS)
    loop = Loop(bench, 1, 64, 1)
    plan, start, noise, projections = request(2, 1, 6, 1, 1, 64)
    projections[3, 1] = np.inf
    loop.fill(plan, start, noise, projections)
    loop.replay(6)
    assert bench.get(loop.cursor, [1], CURSOR)[0]["bad"] == 3

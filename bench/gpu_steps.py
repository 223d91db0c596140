"""The kernels of a step as cases, each beside plain NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_case import EVALUATIONS, Built
from diffusion_rt.bench.gpu_rows import excess
from diffusion_rt.kernels import guided_step, prepare, select_rows
from diffusion_rt.kernels.step_table import ALL_FINITE, CURSOR, cursor, step_table

PHI = 0.7  # guidance rescale


@dataclass(frozen=True, slots=True)
class Prepare:
    """`prepare`."""

    dtype: str
    rows: int
    images: int
    elements: int
    cold: bool = False
    flop: int = 0

    @property
    def name(self) -> str:
        return f"prepare.{self.dtype}"

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def setting(self) -> dict[str, str | int | float]:
        return {"rows": self.rows, "images": self.images, "elements": self.elements}

    @property
    def nbytes(self) -> int:
        width = np.dtype(self.dtype).itemsize
        return self.images * self.elements * (4 + self.rows * width)

    def build(self, bench: Bench, seed: int) -> Built:
        state = latents(seed, 2, self.images, self.elements)
        steps = _steps(1)
        now = cursor(EVALUATIONS)
        now["index"] = 5
        shape = (self.rows, self.images, self.elements)
        out = bench.poisoned(int(np.prod(shape)) * np.dtype(self.dtype).itemsize)
        buffers = (bench.put(now), bench.put(steps), bench.put(state), out)
        launch = prepare.launch(self.elements, self.images)

        def check(found: dict[str, Array]) -> float:
            truth = prepare.reference(state, steps[5], self.rows)
            plain = np.broadcast_to((state[0] * steps[5]["c_in"]).astype(self.dtype), truth.shape)
            return excess(found["input"], plain, truth)

        return Built(
            enqueue=lambda: bench.launch(self.name, launch, *buffers, self.elements, self.rows),
            outputs={"input": (out, shape, self.dtype)},
            check=check,
        )


@dataclass(frozen=True, slots=True)
class GuidedStep:
    """`guidance_statistics`, then `guided_step`, with rescale, noise and K latents."""

    dtype: str
    rows: int
    images: int
    elements: int
    order: int = 2
    cold: bool = False
    flop: int = 0

    @property
    def name(self) -> str:
        return f"guided_step.{self.dtype}"

    @property
    def variants(self) -> tuple[str, ...]:
        return (f"guidance_statistics.{self.dtype}", self.name)

    @property
    def setting(self) -> dict[str, str | int | float]:
        sizes = {"rows": self.rows, "images": self.images, "elements": self.elements}
        return {**sizes, "order": self.order, "rescale": PHI}

    @property
    def nbytes(self) -> int:
        prediction = 2 * self.rows * np.dtype(self.dtype).itemsize  # read by both kernels
        return self.images * self.elements * (prediction + 4 * (2 * self.order + 1))

    def build(self, bench: Bench, seed: int) -> Built:
        rng = np.random.default_rng(seed)
        shape = (self.rows, self.images, self.elements)
        prediction = rng.standard_normal(shape, np.float32).astype(self.dtype)
        state = latents(seed + 1, self.order, self.images, self.elements)
        noise = latents(seed + 2, EVALUATIONS, self.images, self.elements)
        steps, fresh = _steps(self.order), cursor(EVALUATIONS)
        counter, place = bench.put(fresh), bench.put(state)
        table, predicted, draws = bench.put(steps), bench.put(prediction), bench.put(noise)
        partial = bench.poisoned(guided_step.partial_bytes(self.elements, self.images))
        pristine = bench.put(fresh)
        statistics, step = self.variants
        sizes = (self.elements, self.images)

        def enqueue() -> None:
            ends = (self.elements, self.rows)
            launch = guided_step.statistics_launch(*sizes)
            bench.launch(statistics, launch, counter, table, predicted, partial, *ends)
            bench.launch(
                step,
                guided_step.launch(*sizes),
                *(counter, table, predicted, draws, partial, place, *ends),
            )

        def check(found: dict[str, Array]) -> float:
            counted = found["cursor"][0]
            if counted["index"] != 1 or counted["arrived"] or counted["bad"] != ALL_FINITE:
                return float("inf")
            truth = guided_step.reference(prediction, noise[0], state, steps[0])
            plain = plain_step(prediction, noise[0], state, steps[0])
            return excess(found["state"], plain, truth)

        return Built(
            enqueue=enqueue,
            outputs={"state": (place, state.shape, "f4"), "cursor": (counter, (1,), CURSOR)},
            check=check,
            restore={"state": (place, state), "cursor": (counter, fresh)},
            rewind=lambda: bench.stream.copy(counter, pristine),
        )


@dataclass(frozen=True, slots=True)
class SelectRows:
    """`select_rows`: the projections of one evaluation for every resnet."""

    lengths: tuple[int, ...]  # bytes of a row of each table
    cold: bool = False
    flop: int = 0

    @property
    def name(self) -> str:
        return "select_rows"

    @property
    def variants(self) -> tuple[str, ...]:
        return ("select_rows",)

    @property
    def setting(self) -> dict[str, str | int | float]:
        return {"tables": len(self.lengths), "longest": max(self.lengths)}

    @property
    def nbytes(self) -> int:
        return 2 * sum(self.lengths)

    def build(self, bench: Bench, seed: int) -> Built:
        rng = np.random.default_rng(seed)
        tables = [rng.integers(0, 256, (8, length), np.uint8) for length in self.lengths]
        places = [bench.poisoned(length) for length in self.lengths]
        entries = [
            (bench.put(table).address, place.address, length)
            for table, place, length in zip(tables, places, self.lengths, strict=True)
        ]
        now = cursor(8)
        now["index"] = 6
        buffers = (bench.put(now), bench.put(select_rows.tables(entries)))
        launch = select_rows.launch(len(entries), max(self.lengths))

        def check(found: dict[str, Array]) -> float:
            wanted = (select_rows.reference(table, 6) for table in tables)
            same = (np.array_equal(found[f"{i}"], row) for i, row in enumerate(wanted))
            return 0.0 if all(same) else float("inf")

        return Built(
            enqueue=lambda: bench.launch("select_rows", launch, *buffers),
            outputs={f"{i}": (p, (p.nbytes,), "u1") for i, p in enumerate(places)},
            check=check,
        )


def latents(seed: int, count: int, images: int, elements: int) -> Array:
    """Random numbers of the size of latents, [count, images, elements] float32."""
    return np.random.default_rng(seed).standard_normal((count, images, elements), np.float32)


def _steps(order: int) -> Array:
    """A plan that stays bounded however often it runs."""
    rng = np.random.default_rng(order)
    weights = rng.normal(0, 0.2 / (order + 2), (EVALUATIONS, order, order + 2))
    weights[:, 0, 0] += 0.5
    drawn = np.ones(EVALUATIONS, np.bool_)
    return step_table(np.linspace(0.07, 1, EVALUATIONS), weights, drawn, 5.0, PHI)


def plain_step(prediction: Array, noise: Array | None, state: Array, step: Any) -> Array:
    """One guided step in NumPy, guidance in float32 and the sums in float64."""
    one = np.float32
    guided = prediction[-1].astype(one)
    if len(prediction) == 2:
        unconditional, conditional = prediction.astype(one)
        guided = unconditional + step["guidance"] * (conditional - unconditional)
        if phi := step["rescale"]:
            wanted = conditional.std(-1, ddof=1, keepdims=True)
            ratio = wanted / guided.std(-1, ddof=1, keepdims=True)
            guided = guided * (phi * ratio + (one(1) - phi))
    order = int(step["order"])
    result = np.einsum("kj,jie->kie", step["weights"][:order, :order], state[:order])
    result = result + step["weights"][:order, 5, None, None] * guided
    if noise is not None:
        result = result + step["weights"][:order, 6, None, None] * noise
    return np.asarray(result, one)

"""One size of request on a device: its buffers at fixed addresses, and one captured evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.captured import Captured, CapturedEngine
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.memory import Arrays, Layout
from diffusion_rt.engines.device.protocol import AHEAD, AT_ONCE, DeviceArray, DeviceEngine
from diffusion_rt.engines.protocol import Evaluations
from diffusion_rt.engines.spec import Dtype
from diffusion_rt.kernels import guided_step, prepare, select_rows
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import Part, part
from diffusion_rt.kernels.driver.interface import Span, Stream
from diffusion_rt.kernels.step_table import (
    CURSOR,
    MAX_ORDER,
    NO_NOISE,
    STEP,
    cursor,
    step_table,
)

Transfers = list[tuple[Span, NDArray[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a captured evaluation is good for."""

    rows: int  # of the UNet for each image: 2 with guidance, else 1
    images: int
    latent_shape: tuple[int, int, int]  # channels, height, width
    tokens: int

    @property
    def batch(self) -> int:
        """Rows of the UNet."""
        return self.rows * self.images

    @property
    def elements(self) -> int:
        """Of one image's latents."""
        return prod(self.latent_shape)


class Bucket:
    """The denoising loop's memory for one size, and the evaluation that reads and writes it.

    What changes from one evaluation to the next stands in tables on the device, and a counter there
    says which row is next; so one capture serves every sampler and every number of steps.
    """

    def __init__(
        self,
        gpu: Gpu,
        size: Size,
        prompt: DeviceEngine,
        timestep: DeviceEngine,
        step: DeviceEngine,
    ) -> None:
        """Take the memory and bind the parts of the UNet, which are closed with the bucket.

        Raises OutOfMemory.
        """
        self.size = size
        self._gpu = gpu
        self._step = step
        self._prompt, self._timestep = CapturedEngine(prompt), CapturedEngine(timestep)
        self._evaluation = Captured(self._enqueue, lambda: step.generation)
        self._fixed = Arrays(gpu.device)
        self._tables: _Tables | None = None
        latent = step.inputs["latent"].dtype
        predicted = step.outputs["prediction"].dtype
        try:
            variants = loop_kernels(latent, predicted)
            gpu.prepare(variants.values())
            self._kernels = {name: gpu.kernel(variant) for name, variant in variants.items()}
            self._allocate(prompt, timestep)
            self._prompt.bind(self.prompt)
            step.bind(self._bindings)
        except BaseException:
            self.close()
            raise

    def _allocate(self, prompt: DeviceEngine, timestep: DeviceEngine) -> None:
        size, step = self.size, self._step
        sizes = {"batch": size.batch, "tokens": size.tokens, "n": size.batch}
        latents = (size.batch, *size.latent_shape)
        partial = guided_step.partial_bytes(size.elements, size.images)
        layouts: tuple[Layout, ...] = (
            {name: (spec.resolve(sizes), spec.dtype) for name, spec in prompt.inputs.items()},
            {name: (spec.resolve(sizes), spec.dtype) for name, spec in prompt.outputs.items()},
            {name: (spec.resolve(sizes), spec.dtype) for name, spec in timestep.outputs.items()},
            {
                "latent": (latents, step.inputs["latent"].dtype),
                "prediction": (latents, step.outputs["prediction"].dtype),
            },
            {
                "state": ((MAX_ORDER, size.images, *size.latent_shape), "float32"),
                "partial": ((partial // 4,), "float32"),
                "noise": ((AHEAD, size.images, *size.latent_shape), "float32"),
                "cursor": ((CURSOR.itemsize // 8,), "int64"),
            },
        )
        inputs, outputs, self._projection, ends, own = self._fixed.make("its buffers", *layouts)
        self.prompt = inputs | outputs
        self._latent, self._prediction = ends["latent"], ends["prediction"]
        self._state, self._partial, self._cursor = own["state"], own["partial"], own["cursor"]
        self._noise = own["noise"]
        constant = {name: place for name, place in outputs.items() if name != "added"}
        self._bindings = {**constant, **self._projection, **ends}

    @property
    def result(self) -> tuple[Span, Span]:
        """S[0] and the evaluation counter."""
        nbytes = self.size.images * self.size.elements * np.dtype(np.float32).itemsize
        return part(self._state, 0, nbytes), self._cursor

    def noise_row(self, index: int) -> Part:
        """Where evaluation `index` reads its noise [images, c, h, w]: one row of `AHEAD`."""
        row = self._noise.nbytes // AHEAD
        return part(self._noise, index % AHEAD * row, row)

    def reserve(self, evaluations: int) -> None:
        """Make the tables large enough; no work on them may be under way."""
        if self._tables is None or evaluations > self._tables.evaluations:
            self._evaluation.close()
            if self._tables is not None:
                self._tables.close()
                self._tables = None
            rows = max(AT_ONCE, 1 << (evaluations - 1).bit_length())
            added = self.prompt["added"]
            self._tables = _Tables(self._gpu, self.size, added, self._projection, rows)
        self._timestep.bind(self._projection_runs(evaluations)[0])

    def fill(
        self,
        stream: Stream,
        evaluations: Evaluations,
        guidance: tuple[float, float],
        start: NDArray[np.float32],
    ) -> Transfers:
        """Empty the state on the stream; what else the request brings is returned, to be sent.

        `guidance` is scale and rescale, `start` [images, c, h, w].
        """
        tables = self._reserved()
        steps = step_table(evaluations.c_in, evaluations.weights, evaluations.draws, *guidance)
        turns = np.arange(len(steps)) % AHEAD
        steps["noise"] = np.where(evaluations.draws, turns, NO_NOISE)
        stream.fill(self._state, 0)
        return [
            (self._cursor, cursor(len(steps))),
            (tables.steps, steps),
            (tables.timesteps, np.repeat(evaluations.timesteps, self.size.batch)),
            (tables.rows, tables.entries),
            (self._state, start.astype(np.float32, copy=False)),
        ]

    def begin(self, stream: Stream, evaluations: int) -> None:
        """Run what comes before the first evaluation: the prompt's part, then the timesteps'."""
        self._prompt.enqueue(stream)
        self._repeat_added(stream, evaluations)
        for buffers in self._projection_runs(evaluations):
            self._timestep.bind(buffers)
            self._timestep.enqueue(stream)

    def evaluate(self, stream: Stream) -> None:
        """Put one evaluation on the stream."""
        self._evaluation.enqueue(stream)

    def close(self) -> None:
        """Give everything back; no work on it may be under way."""
        self._evaluation.close()
        for engine in (self._prompt, self._timestep, self._step):
            engine.close()
        if self._tables is not None:
            self._tables.close()
        self._fixed.close()

    def _projection_runs(self, evaluations: int) -> list[dict[str, DeviceArray]]:
        """What unet_timestep is bound to, run by run, to fill the tables of projections."""
        tables, batch = self._reserved(), self.size.batch
        runs = []
        for first in range(0, evaluations, AT_ONCE):
            count = min(AT_ONCE, evaluations - first) * batch
            added = replace(tables.added, shape=(count, *tables.added.shape[1:]))
            run = {"timestep": _rows(tables.timesteps, first * batch, count), "added": added}
            for name, table in tables.projections.items():
                run[name] = _rows(table, first * batch, count)
            runs.append(run)
        return runs

    def _repeat_added(self, stream: Stream, evaluations: int) -> None:
        """Put `added` [batch, p] once for each evaluation of a run where unet_timestep reads it."""
        source, place = self.prompt["added"], self._reserved().added
        stream.copy(place, source)
        have, wanted = source.nbytes, source.nbytes * min(evaluations, AT_ONCE)
        while have < wanted:
            more = min(have, wanted - have)
            stream.copy(part(place, have, more), part(place, 0, more))
            have += more

    def _enqueue(self, stream: Stream) -> None:
        size, tables = self.size, self._reserved()
        at = (self._cursor.address, tables.steps.address)
        counts = (size.elements, size.rows)
        grid = (size.elements, size.images)
        prediction, partial = self._prediction.address, self._partial.address
        kernels = self._kernels
        stream.launch(
            kernels["select_rows"],
            select_rows.launch(len(self._projection), tables.longest),
            (self._cursor.address, tables.rows.address),
        )
        stream.launch(
            kernels["prepare"],
            prepare.launch(*grid),
            (*at, self._state.address, self._latent.address, *counts),
        )
        self._step.enqueue(stream)
        stream.launch(
            kernels["guidance_statistics"],
            guided_step.statistics_launch(*grid),
            (*at, prediction, partial, *counts),
        )
        stream.launch(
            kernels["guided_step"],
            guided_step.launch(*grid),
            (*at, prediction, self._noise.address, partial, self._state.address, *counts),
        )

    def _reserved(self) -> "_Tables":
        assert self._tables is not None, "reserve comes first"
        return self._tables


def loop_kernels(latent: Dtype, predicted: Dtype) -> dict[str, Variant]:
    """The kernels around the UNet, for what it reads and what it predicts."""
    names = {
        "select_rows": "select_rows",
        "prepare": f"prepare.{latent}",
        "guidance_statistics": f"guidance_statistics.{predicted}",
        "guided_step": f"guided_step.{predicted}",
    }
    return {name: CATALOGUE[variant] for name, variant in names.items()}


class _Tables:
    """What has a row for each evaluation."""

    def __init__(
        self,
        gpu: Gpu,
        size: Size,
        added: DeviceArray,
        projection: Mapping[str, DeviceArray],
        evaluations: int,
    ) -> None:
        self.evaluations = evaluations
        self.longest = max((place.nbytes for place in projection.values()), default=0)
        self._arrays = Arrays(gpu.device)
        rows = evaluations * size.batch
        own: dict[str, tuple[tuple[int, ...], Dtype]] = {
            "steps": ((evaluations, STEP.itemsize // 8), "int64"),
            "rows": ((len(projection), select_rows.TABLE.itemsize // 8), "int64"),
            "timesteps": ((rows,), "float32"),
            "added": ((AT_ONCE * size.batch, *added.shape[1:]), added.dtype),
        }
        tables: Layout = {
            name: ((rows, *place.shape[1:]), place.dtype) for name, place in projection.items()
        }
        made, self.projections = self._arrays.make("its tables", own, tables)
        self.steps, self.rows = made["steps"], made["rows"]
        self.timesteps, self.added = made["timesteps"], made["added"]
        self.entries = select_rows.tables(
            [
                (self.projections[name].address, place.address, place.nbytes)
                for name, place in projection.items()
            ]
        )

    def close(self) -> None:
        self._arrays.close()


def _rows(table: DeviceArray, first: int, count: int) -> DeviceArray:
    """`count` rows of a table from `first`."""
    row = table.nbytes // table.shape[0]
    return DeviceArray(table.address + first * row, (count, *table.shape[1:]), table.dtype)

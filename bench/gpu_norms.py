"""The normalisations as cases, each beside plain NumPy."""

from dataclasses import dataclass

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_case import Built
from diffusion_rt.bench.gpu_rows import excess
from diffusion_rt.kernels import group_norm, layer_norm

EPSILON = 1e-5
MOST_CHECKED = 4 << 20  # numbers of a group normalisation that are held against the reference


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """`layer_norm`."""

    dtype: str
    rows: int
    columns: int
    cold: bool = True
    flop: int = 0

    @property
    def name(self) -> str:
        return f"layer_norm.{self.dtype}"

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def setting(self) -> dict[str, str | int | float]:
        return {"rows": self.rows, "columns": self.columns}

    @property
    def nbytes(self) -> int:
        return 2 * self.rows * self.columns * np.dtype(self.dtype).itemsize

    def build(self, bench: Bench, seed: int) -> Built:
        rng = np.random.default_rng(seed)
        shape = (self.rows, self.columns)
        x = rng.standard_normal(shape, np.float32) * rng.uniform(0.1, 5, (self.rows, 1))
        x = (x + rng.normal(0, 3, (self.rows, 1))).astype(self.dtype)
        weight, bias = rng.normal(size=(2, self.columns)).astype(self.dtype)
        out = bench.poisoned(x.nbytes)
        buffers = (bench.put(x), bench.put(weight), bench.put(bias), out)
        launch = layer_norm.launch(*shape)

        def check(found: dict[str, Array]) -> float:
            single = x.astype(np.float32)
            centred = single - single.mean(-1, keepdims=True)
            scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(EPSILON))
            plain = centred * scale * weight.astype(np.float32) + bias.astype(np.float32)
            truth = layer_norm.reference(x, weight, bias, EPSILON)
            return excess(found["output"], plain.astype(self.dtype), truth)

        return Built(
            enqueue=lambda: bench.launch(self.name, launch, *buffers, *shape, EPSILON),
            outputs={"output": (out, shape, self.dtype)},
            check=check,
        )


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """`group_statistics`, then `group_norm` with or without SiLU."""

    dtype: str
    silu: bool
    images: int
    pixels: int
    channels: int
    groups: int = 32
    cold: bool = True
    flop: int = 0

    @property
    def name(self) -> str:
        return f"group_norm{'_silu' if self.silu else ''}.{self.dtype}"

    @property
    def variants(self) -> tuple[str, ...]:
        return (f"group_statistics.{self.dtype}", self.name)

    @property
    def setting(self) -> dict[str, str | int | float]:
        sizes = {"images": self.images, "pixels": self.pixels, "channels": self.channels}
        return {**sizes, "groups": self.groups}

    @property
    def nbytes(self) -> int:
        elements = self.images * self.pixels * self.channels
        return 3 * elements * np.dtype(self.dtype).itemsize  # read twice, written once

    def build(self, bench: Bench, seed: int) -> Built:
        rng = np.random.default_rng(seed)
        shape = (self.images, self.pixels, self.channels)
        norm = group_norm.GroupNorm(
            dtype=self.dtype,
            images=self.images,
            pixels=self.pixels,
            channels=self.channels,
            groups=self.groups,
            epsilon=EPSILON,
            silu=self.silu,
        )
        x = rng.standard_normal(shape, np.float32)
        x *= rng.uniform(0.2, 3, self.channels).astype(np.float32)
        x += rng.normal(size=self.channels).astype(np.float32)
        x = x.astype(self.dtype)
        weight, bias = rng.normal(size=(2, self.channels)).astype(self.dtype)
        source, out = bench.put(x), bench.poisoned(x.nbytes)
        partial = bench.poisoned(norm.partial_bytes).address
        arrived = bench.put(np.zeros(self.images, np.uint32)).address
        moments = bench.poisoned(norm.moments_bytes).address
        scales = (bench.put(weight).address, bench.put(bias).address)
        statistics, apply = self.variants
        first = norm.statistics_arguments(
            first=source.address, partial=partial, arrived=arrived, moments=moments
        )
        second = norm.arguments(
            first=source.address,
            moments=moments,
            weight=scales[0],
            bias=scales[1],
            output=out.address,
        )

        def enqueue() -> None:
            bench.launch(statistics, norm.launches[0], *first)
            bench.launch(apply, norm.launches[1], *second)

        def check(found: dict[str, Array]) -> float:
            output = found["output"]
            if not np.isfinite(output).all():
                return float("inf")
            chosen = self.channels_checked()
            part, scale, shift = x[..., chosen], weight[chosen], bias[chosen]
            groups = len(chosen) * self.groups // self.channels
            truth = group_norm.reference(part, scale, shift, groups, EPSILON, self.silu)
            return excess(output[..., chosen], self._plain(part, scale, shift, groups), truth)

        return Built(enqueue=enqueue, outputs={"output": (out, shape, self.dtype)}, check=check)

    def channels_checked(self) -> Array:
        """Those of all groups; of a large shape, of some groups from the first to the last.

        Groups know nothing of each other, and the reference takes seconds for ten million numbers.
        """
        width = self.channels // self.groups
        most = max(2, MOST_CHECKED // (self.images * self.pixels * width))
        groups = np.unique(np.linspace(0, self.groups - 1, most).round().astype(int))
        channels: Array = (groups[:, None] * width + np.arange(width)).reshape(-1)
        return channels

    def _plain(self, x: Array, weight: Array, bias: Array, groups: int) -> Array:
        """The same in float32 NumPy, rounded at the end."""
        single = x.astype(np.float32).reshape(self.images, self.pixels, groups, -1)
        centred = single - single.mean((1, 3), keepdims=True)
        variance = (centred**2).mean((1, 3), keepdims=True)
        normal = (centred / np.sqrt(variance + np.float32(EPSILON))).reshape(x.shape)
        y = normal * weight.astype(np.float32) + bias.astype(np.float32)
        if self.silu:
            y = y / (1 + np.exp(-y))
        result: Array = y.astype(self.dtype)
        return result

"""A picture's bytes as a case, which are the reference's or wrong."""

import math
from dataclasses import dataclass

import numpy as np

from diffusion_rt.bench.gpu_bench import Array, Bench
from diffusion_rt.bench.gpu_case import Built
from diffusion_rt.kernels import pixels


@dataclass(frozen=True, slots=True)
class Pixels:
    """`pixels`."""

    dtype: str
    images: int
    count: int
    cold: bool = True
    flop: int = 0

    @property
    def name(self) -> str:
        return f"pixels.{self.dtype}"

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def setting(self) -> dict[str, str | int | float]:
        return {"images": self.images, "pixels": self.count}

    @property
    def nbytes(self) -> int:
        return self.images * self.count * 3 * (np.dtype(self.dtype).itemsize + 1)

    def build(self, bench: Bench, seed: int) -> Built:
        rng = np.random.default_rng(seed)
        shape = (self.images, self.count, 3)
        image = rng.standard_normal((self.images, 3, self.count), np.float32).astype(self.dtype)
        output, not_finite = bench.poisoned(int(np.prod(shape))), bench.poisoned(4)
        buffers = (bench.put(image), output, not_finite)
        launch = pixels.launch(self.count, self.images)

        def check(found: dict[str, Array]) -> float:
            same = np.array_equal(found["output"], pixels.reference(image))
            return 0.0 if same and not found["not_finite"].any() else math.inf

        return Built(
            enqueue=lambda: bench.launch(self.name, launch, *buffers, self.count),
            outputs={
                "output": (output, shape, np.uint8),
                "not_finite": (not_finite, (1,), np.int32),
            },
            check=check,
            restore={"not_finite": (not_finite, np.zeros(1, np.int32))},
        )

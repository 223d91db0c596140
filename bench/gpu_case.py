"""What is checked and timed on a GPU: a kernel, or two that belong together, at one shape."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from diffusion_rt.bench.gpu_bench import POISON, Array, Bench
from diffusion_rt.kernels.driver.interface import Buffer

EVALUATIONS = 64  # rows of the step tables here, and the most launches of one timed graph


@dataclass(slots=True)
class Built:
    """A case on a device."""

    enqueue: Callable[[], None]  # one launch of it
    outputs: dict[str, tuple[Buffer, tuple[int, ...], Any]]  # with shape and dtype
    check: Callable[[dict[str, Array]], float]  # error of the outputs over the error allowed
    restore: dict[str, tuple[Buffer, Array]] = field(default_factory=dict)  # changed in place
    rewind: Callable[[], None] | None = None  # before the launches of a timed graph


class Case(Protocol):
    """A kernel, or two that belong together, at one shape."""

    @property
    def name(self) -> str: ...

    @property
    def variants(self) -> tuple[str, ...]: ...

    @property
    def setting(self) -> dict[str, str | int | float]: ...

    @property
    def nbytes(self) -> int:
        """What has to move: each input read once a pass, each output written once."""
        ...

    @property
    def flop(self) -> int:
        """Operations of its products, a product and a sum counted as two; 0 where it has none."""
        ...

    @property
    def cold(self) -> bool:
        """Whether it is timed on data that no cache holds, too."""
        ...

    def build(self, bench: Bench, seed: int) -> Built: ...


def run(bench: Bench, built: Built) -> dict[str, Array]:
    """One launch on poisoned outputs and restored inputs; what it wrote."""
    for buffer, _, _ in built.outputs.values():
        bench.stream.fill(buffer, POISON)
    for buffer, values in built.restore.values():
        bench.refill(buffer, values)
    built.enqueue()
    return {name: bench.get(*place) for name, place in built.outputs.items()}

"""The ways to run an attention: a variant of a kernel, what it takes, how it is launched."""

from dataclasses import dataclass
from typing import Protocol

from diffusion_rt.kernels.attention import PARAMETERS, Attention, Dtype
from diffusion_rt.kernels.driver.arguments import Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.variant import Variant


class Tactic(Protocol):
    """One way to run an attention."""

    @property
    def variant(self) -> Variant: ...

    def takes(self, attention: Attention, limits: Limits) -> bool:
        """Whether this runs that attention on a chip with these limits."""
        ...

    def launch(self, attention: Attention) -> Launch: ...

    def arguments(
        self, attention: Attention, q: int, k: int, v: int, out: int
    ) -> tuple[Value, ...]:
        """What the variant's parameters want, for tensors at these addresses."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiled:
    """A kernel of attention.PARAMETERS, each block of which has so many queries of one head."""

    variant: Variant
    dtype: Dtype
    head: int  # the largest head it takes
    rows: int
    threads: int
    shared_bytes: int = 0  # dynamic

    def takes(self, attention: Attention, limits: Limits) -> bool:
        fits = self.shared_bytes + self.variant.shared_bytes <= limits.shared_bytes
        return attention.dtype == self.dtype and attention.head_size <= self.head and fits

    def launch(self, attention: Attention) -> Launch:
        grid = (-(-attention.queries // self.rows), attention.heads, attention.batch)
        return Launch(grid=grid, block=(self.threads, 1, 1), shared_bytes=self.shared_bytes)

    def arguments(
        self, attention: Attention, q: int, k: int, v: int, out: int
    ) -> tuple[Value, ...]:
        return attention.arguments(q, k, v, out)


def _plain(head: int, rows: int, registers: int) -> Tiled:
    """The float32 kernel; the sizes are those of attention_float32.cu."""
    keys, slice_stride, value_keys = 64, 36, 8
    staged = max((rows + keys) * slice_stride, value_keys * head)
    variant = Variant(
        name=f"attention_{head}.float32",
        kernel="attention",
        source="attention_float32.cu",
        constants=(("HEAD", str(head)), ("ROWS", str(rows))),
        parameters=PARAMETERS,
        registers=registers,
        shared_bytes=4 * (staged + rows * (keys + 4)),
    )
    return Tiled(variant=variant, dtype="float32", head=head, rows=rows, threads=256)


TILED = (
    _plain(64, 64, 160),
    _plain(160, 64, 200),
    _plain(512, 32, 192),
)
TACTICS: tuple[Tactic, ...] = TILED
VARIANTS = tuple(tactic.variant for tactic in TILED)


def tactics(attention: Attention, limits: Limits) -> tuple[Tactic, ...]:
    """All that run an attention on a chip, the likely fastest first; raises Misuse for none."""
    found = tuple(tactic for tactic in TACTICS if tactic.takes(attention, limits))
    if not found:
        most = max((each.head for each in TILED if each.dtype == attention.dtype), default=0)
        raise Misuse(
            f"no attention kernel takes heads of {attention.head_size} in {attention.dtype} on "
            f"sm_{limits.arch}; up to {most} are taken"
        )
    return found

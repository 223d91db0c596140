"""The ways to run an attention: a variant of a kernel, what it takes, how it is launched."""

import math
from dataclasses import dataclass
from typing import Protocol

from diffusion_rt.kernels import attention_sm90
from diffusion_rt.kernels.attention import PARAMETERS, Attention, Dtype
from diffusion_rt.kernels.attention_sm90 import Sm90Attention
from diffusion_rt.kernels.driver.arguments import Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.tactic import Encode
from diffusion_rt.kernels.variant import Variant


class Tactic(Protocol):
    """One way to run an attention."""

    @property
    def variant(self) -> Variant: ...

    @property
    def head(self) -> int:
        """The largest head it takes."""
        ...

    def takes(self, attention: Attention, limits: Limits) -> bool:
        """Whether this runs that attention on a chip with these limits."""
        ...

    def launch(self, attention: Attention) -> Launch: ...

    def arguments(
        self,
        attention: Attention,
        q: int,
        k: int,
        v: int,
        out: int,
        encode: Encode | None = None,
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
        self,
        attention: Attention,
        q: int,
        k: int,
        v: int,
        out: int,
        encode: Encode | None = None,
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
        overlaps=True,
        registers=registers,
        shared_bytes=4 * (staged + rows * (keys + 4)),
    )
    return Tiled(variant=variant, dtype="float32", head=head, rows=rows, threads=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident(Tiled):
    """Of few keys: all of them lie in shared memory, for some blocks of queries in turn."""

    KEYS = 80  # of a step
    MOST_STEPS = 4
    TURNS = 2

    def takes(self, attention: Attention, limits: Limits) -> bool:
        few = attention.keys <= self.MOST_STEPS * self.KEYS and not attention.causal
        fits = self.launch(attention).shared_bytes <= limits.shared_bytes
        return few and fits and Tiled.takes(self, attention, limits)

    def launch(self, attention: Attention) -> Launch:
        turns = -(-attention.queries // self.rows)
        keys = -(-attention.keys // self.KEYS) * self.KEYS
        return Launch(
            grid=(-(-turns // self.TURNS), attention.heads, attention.batch),
            block=(self.threads, 1, 1),
            shared_bytes=(2 * keys + self.rows) * (2 * self.head + 16),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The numbers of attention_stream.h, chosen so that a block stays within 48 KiB."""

    head: int
    warps: int
    tiles: int  # of 16 queries, for each warp
    keys: int  # of a step
    blocks: int  # on a multiprocessor at once, as far as registers go
    registers: int
    suffix: str = ""

    @property
    def rows(self) -> int:
        return self.warps * self.tiles * 16

    @property
    def shared_bytes(self) -> int:
        row = 2 * self.head + 16
        return (2 * self.keys + max(self.rows, 2 * self.keys)) * row

    @property
    def constants(self) -> tuple[tuple[str, str], ...]:
        sizes = (
            ("WARPS", self.warps),
            ("TILES", self.tiles),
            ("KEYS", self.keys),
            ("BLOCKS", self.blocks),
        )
        return tuple((name, str(value)) for name, value in (("HEAD", self.head), *sizes))


STREAMS = (
    Stream(head=32, warps=4, tiles=2, keys=48, blocks=3, registers=168),
    Stream(head=48, warps=4, tiles=2, keys=64, blocks=2, registers=216),
    Stream(head=64, warps=4, tiles=2, keys=64, blocks=2, registers=248),
    Stream(head=64, warps=4, tiles=1, keys=64, blocks=3, registers=168, suffix="_rows64"),
    Stream(head=80, warps=4, tiles=1, keys=64, blocks=3, registers=168),
    Stream(head=96, warps=4, tiles=1, keys=48, blocks=3, registers=168),
    Stream(head=128, warps=4, tiles=1, keys=32, blocks=2, registers=200),
    Stream(head=160, warps=4, tiles=1, keys=32, blocks=2, registers=240),
)
BFLOAT16_HEADS = (64, 160)  # of the rows above; smaller heads run in these

_ELEMENTS: dict[Dtype, str] = {"float16": "half", "bfloat16": "bfloat16"}


def instructions(dtype: Dtype) -> tuple[str, ...]:
    """What the PTX of every kernel for tensor cores must hold."""
    of = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    product = f"mma.sync.aligned.m16n8k16.row.col.f32.{of}.{of}.f32"
    return (product, "ldmatrix.sync.aligned.m8n8.x4.trans", "cp.async.cg.shared.global")


def _streamed(stream: Stream, dtype: Dtype) -> Tiled:
    variant = Variant(
        name=f"attention_{stream.head}{stream.suffix}.{dtype}",
        kernel="attention",
        source="attention.cu",
        constants=(("ELEMENT", _ELEMENTS[dtype]), *stream.constants),
        parameters=PARAMETERS,
        overlaps=True,
        registers=stream.registers,
        shared_bytes=stream.shared_bytes,
        threads=stream.warps * 32,
        instructions=instructions(dtype),
    )
    return Tiled(
        variant=variant,
        dtype=dtype,
        head=stream.head,
        rows=stream.rows,
        threads=stream.warps * 32,
    )


def _resident(head: int, warps: int, blocks: int, registers: int) -> Resident:
    constants = {"HEAD": head, "WARPS": warps, "KEYS": Resident.KEYS, "BLOCKS": blocks}
    variant = Variant(
        name=f"attention_{head}_resident.float16",
        kernel="attention",
        source="attention_resident.cu",
        constants=(("ELEMENT", "half"), *((name, str(n)) for name, n in constants.items())),
        parameters=PARAMETERS,
        overlaps=True,
        registers=registers,
        threads=warps * 32,
        instructions=instructions("float16"),
    )
    return Resident(
        variant=variant, dtype="float16", head=head, rows=warps * 16, threads=warps * 32
    )


def _wide(groups: int, stages: int, dtype: Dtype) -> Tiled:
    """The kernel of attention_wide.cu, for heads up to 512."""
    head, rows, keys = 512, groups * 32, 128
    stage = max(keys * (2 * 64 + 16), 16 * (2 * head + 16))
    shared = rows * (2 * head + 16) + stages * stage + rows * (2 * keys + 16) + rows * 4 * 4
    sizes = {"HEAD": head, "GROUPS": groups, "STAGES": stages, "SHARED_BYTES": shared}
    threads = groups * 4 * 32
    variant = Variant(
        name=f"attention_{head}_rows{rows}.{dtype}",
        kernel="attention",
        source="attention_wide.cu",
        constants=(("ELEMENT", _ELEMENTS[dtype]), *((name, str(n)) for name, n in sizes.items())),
        parameters=PARAMETERS,
        overlaps=True,
        registers=255,
        threads=threads,
        instructions=instructions(dtype),
    )
    return Tiled(
        variant=variant, dtype=dtype, head=head, rows=rows, threads=threads, shared_bytes=shared
    )


TILED = (
    _resident(64, warps=4, blocks=3, registers=168),
    *(_streamed(stream, "float16") for stream in STREAMS),
    *(_streamed(stream, "bfloat16") for stream in STREAMS if stream.head in BFLOAT16_HEADS),
    *(_wide(*sizes, dtype) for dtype in _ELEMENTS for sizes in ((2, 4), (1, 3))),
    _plain(64, 64, 160),
    _plain(160, 64, 200),
    _plain(512, 32, 192),
)
TACTICS: tuple[Tactic, ...] = (*attention_sm90.TACTICS, *TILED)
VARIANTS = tuple(tactic.variant for tactic in TILED)


def tactics(attention: Attention, limits: Limits) -> tuple[Tactic, ...]:
    """All that run an attention on a chip, the likely fastest first; raises Misuse for none.

    The smallest head that fits; few keys in shared memory; sm_90's own, by their cycles; else the
    most queries a block, for they share what is read of keys and values, as long as each
    multiprocessor gets eight warps.
    """
    found = [tactic for tactic in TACTICS if tactic.takes(attention, limits)]
    if not found:
        most = max((each.head for each in TILED if each.dtype == attention.dtype), default=0)
        raise Misuse(
            f"no attention kernel takes heads of {attention.head_size} in {attention.dtype} on "
            f"sm_{limits.arch}; up to {most} are taken"
        )

    def rank(tactic: Tactic) -> tuple[int, bool, bool, bool, int]:
        if isinstance(tactic, Sm90Attention):
            return tactic.head, True, False, False, tactic.cycles(attention, limits)
        launch = tactic.launch(attention)
        warps = math.prod(launch.grid) * launch.block[0] // 32
        idle = warps < 8 * limits.multiprocessors
        rows = -(-attention.queries // launch.grid[0])
        kept = isinstance(tactic, Resident)
        return tactic.head, not kept, True, idle, rows if idle else -rows

    return tuple(sorted(found, key=rank))

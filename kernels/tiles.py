"""Tiles of a product: how it is cut into blocks, and which cut fills a chip.

The choice is a rule of a few lines, good before anything was measured: the chip works in waves of
blocks, and the last wave is rarely full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.epilogue import Epilogue

WARP = 32
ROW_BYTES = 64  # of a block of the depth, in shared memory
FILE = 65536  # registers of a multiprocessor
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
ELEMENTS = {"float16": ("half", 2), "bfloat16": ("bfloat16", 2), "float32": ("float", 4)}


@dataclass(frozen=True, slots=True)
class Tile:
    """What one block computes: rows and columns of the output, shared by its warps."""

    rows: int
    columns: int
    warps_down: int
    warps_across: int
    stages: int  # blocks of the depth in the ring
    registers: int  # of a thread, at most

    @property
    def name(self) -> str:
        """Such as 128x160."""
        return f"{self.rows}x{self.columns}"

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.warps_down * self.warps_across * WARP

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the ring."""
        return self.stages * (self.rows + self.columns) * ROW_BYTES

    @property
    def blocks(self) -> int:
        """Whose registers one multiprocessor holds; the compiler is told, to keep within them."""
        return FILE // (self.threads * -(-self.registers // 8) * 8)

    @property
    def constants(self) -> tuple[tuple[str, str], ...]:
        """The kernel's preprocessor definitions."""
        return (
            ("TILE_ROWS", str(self.rows)),
            ("TILE_COLUMNS", str(self.columns)),
            ("WARPS_DOWN", str(self.warps_down)),
            ("WARPS_ACROSS", str(self.warps_across)),
            ("STAGES", str(self.stages)),
            ("BLOCKS", str(self.blocks)),
        )

    def resident(self, limits: Limits) -> int:
        """Blocks that one multiprocessor holds at once; 0 where one is too large."""
        reserved = 1024  # bytes of each block, the system's
        shared = limits.shared_bytes + reserved
        return min(shared // (self.shared_bytes + reserved), self.blocks)

    def takes(self, epilogue: Epilogue) -> bool:
        """Whether a warp's columns hold whole groups of values and gates."""
        return epilogue.activation != "geglu" or self.columns // self.warps_across % 16 == 0


_LARGE, _TALL, _SMALL = (
    Tile(128, 128, 2, 2, 4, 255),
    Tile(128, 64, 2, 2, 4, 184),
    Tile(64, 64, 2, 2, 4, 128),
)
_WIDE, _HALF_WIDE = Tile(128, 160, 4, 2, 4, 200), Tile(128, 80, 4, 1, 4, 208)
_HUGE, _NARROW = Tile(256, 128, 4, 2, 3, 255), Tile(128, 16, 4, 1, 4, 128)

OF_PRODUCTS: dict[str, tuple[Tile, ...]] = {
    "float16": (_LARGE, _TALL, _SMALL, _WIDE, _HALF_WIDE, _HUGE, _NARROW),
    "bfloat16": (_LARGE, _TALL, _SMALL),
    "float32": (_SMALL,),
}
"""The tiles of `gemm` for each type; 160 columns divide SDXL's 320, 640 and 1280."""

OF_CONVOLUTIONS: dict[str, tuple[Tile, ...]] = {
    "float16": (_LARGE, _TALL, _SMALL, _WIDE, _NARROW),
    "bfloat16": (_LARGE, _TALL, _SMALL, _NARROW),
    "float32": (_SMALL, _NARROW),
}
"""The tiles of `conv`; the narrow one is for the few channels of a latent or a picture."""


def instructions(dtype: str) -> tuple[str, ...]:
    """What the kernels of a type must have in their PTX."""
    if dtype == "float32":
        return ("cp.async.cg.shared.global", "fma.rn.f32")
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    product = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    return ("cp.async.cg.shared.global", "ldmatrix.sync.aligned.m8n8.x4.shared.b16", product)


def depth_at_once(dtype: str) -> int:
    """Elements of the depth in one block of the ring."""
    return ROW_BYTES // ELEMENTS[dtype][1]


@dataclass(frozen=True, slots=True)
class Cut:
    """A product cut into tiles, and its depth into splits."""

    tile: Tile
    split_depth: int
    launch: Launch

    @property
    def splits(self) -> int:
        """Blocks that share one tile."""
        return self.launch.grid[1]

    @property
    def counters(self) -> int:
        """Of tiles whose splits are all done; one each where there are splits."""
        return self.launch.grid[0] if self.splits > 1 else 0

    def partial_bytes(self, rows: int, columns: int) -> int:
        """What the splits leave: [splits, rows, columns] float32, or nothing."""
        return self.splits * rows * columns * 4 if self.splits > 1 else 0


def cut(
    tile: Tile, splits: int, dtype: str, rows: int, columns: int, depth: int, *, parts: int = 1
) -> Cut:
    """A product of these sizes cut so; fewer splits where the depth does not give so many.

    No tile has rows of two of the `parts` that the rows have in equal shares.
    """
    at_once = depth_at_once(dtype)
    blocks = -(-depth // at_once)
    split_depth = -(-blocks // splits) * at_once
    tiles = parts * -(-rows // (parts * tile.rows)) * -(-columns // tile.columns)
    return Cut(
        tile,
        split_depth,
        Launch(
            grid=(tiles, -(-depth // split_depth), 1),
            block=(tile.threads, 1, 1),
            shared_bytes=tile.shared_bytes,
        ),
    )


def cuts(
    tiles: Sequence[Tile],
    dtype: str,
    rows: int,
    columns: int,
    depth: int,
    epilogue: Epilogue,
    limits: Limits,
    *,
    parts: int = 1,
) -> tuple[Cut, ...]:
    """All cuts worth measuring on a chip, the one that should be fastest first.

    The depth is split only where there are few tiles, and into parts worth a block.
    """
    found: dict[tuple[str, int], Cut] = {}
    for tile, splits in product(tiles, SPLITS):
        if tile.takes(epilogue) and tile.resident(limits) > 0:
            made = cut(tile, splits, dtype, rows, columns, depth, parts=parts)
            worth = made.launch.grid[0] <= limits.multiprocessors and made.split_depth >= 128
            if made.splits == 1 or worth:
                found[tile.name, made.splits] = made
    return tuple(
        sorted(found.values(), key=lambda made: cycles(made, dtype, rows, columns, limits))
    )


def cycles(made: Cut, dtype: str, rows: int, columns: int, limits: Limits) -> float:
    """How long a cut takes by a simple model: the work of the busiest multiprocessor.

    It multiplies at best 1,024 pairs of float16 a cycle (128 of float32), less where a warp's tile
    is too small for what shared memory gives (128 bytes a cycle), or a block's for what L2 gives
    (48); three quarters of that in practice. Each round of blocks costs a start and an end; what
    splits leave is written and read again at some 16 bytes a cycle of each multiprocessor.
    """
    tile, item = made.tile, ELEMENTS[dtype][1]
    down, across = tile.rows // tile.warps_down, tile.columns // tile.warps_across
    best = 128.0 if dtype == "float32" else 1024.0
    from_shared = 128 / item * down * across / (down + across)
    from_l2 = 48 / item * tile.rows * tile.columns / (tile.rows + tile.columns)
    rate = 0.75 * min(best, from_shared, from_l2)
    blocks = made.launch.grid[0] * made.splits
    busiest = -(-blocks // limits.multiprocessors)
    rounds = -(-busiest // tile.resident(limits))
    work = busiest * tile.rows * tile.columns * made.split_depth / rate
    if busiest == 1 or tile.resident(limits) == 1:
        work *= 1.15  # No other block fills the waits.
    ends = rounds * (1500 + tile.rows * tile.columns / 16)
    if made.splits == 1:
        return work + ends
    moved = 2 * made.splits * rows * columns * 4
    return work + ends + 2000 + moved / (16 * limits.multiprocessors)

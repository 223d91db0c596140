"""Tiles of a product on sm_90a: how a persistent block shares one out, and what fills the chip."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

from diffusion_rt.kernels.driver.launch import Launch, Limits

ARCH = 90
WARPGROUP = 128
THREADS = 3 * WARPGROUP  # one warpgroup asks for copies, two multiply
DEPTH = 64  # elements along the depth in one stage of the ring
ROW_BYTES = 2 * DEPTH
BARRIER_BYTES = 16  # of a stage: one full, one empty
WORD_BYTES = 16  # behind the barriers
SPLITS = (1, 2, 3, 4, 6, 8)
LEAST_BLOCKS = 4  # of the depth, in one split
REGISTERS = 168  # of a thread at the start, before the warpgroups shrink and grow
ELEMENTS = {"float16": "half", "bfloat16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of the output that one block makes at a time.

    The two multiplying warpgroups share its rows (`groups_down` 2) or its columns (1). The blocks
    of a `cluster` of two have tiles one below the other: each reads half of the weight for both.
    `apart`: each warpgroup takes tiles of its own, by turns, and stores while the other multiplies.
    """

    rows: int
    columns: int
    groups_down: int = 2
    cluster: int = 1
    apart: bool = False

    @property
    def name(self) -> str:
        """Such as 128x160, 2x128x160 for a cluster of two, 2x128x160_turns."""
        side, turns = "2x" if self.cluster == 2 else "", "_turns" if self.apart else ""
        return f"{side}{self.rows}x{self.columns}{turns}"

    @property
    def group(self) -> tuple[int, int]:
        """Rows and columns of one warpgroup."""
        if self.apart:
            return self.rows, self.columns
        return self.rows // self.groups_down, self.columns * self.groups_down // 2

    @property
    def stage_bytes(self) -> int:
        """One stage of the ring: a block of both factors."""
        return (self.rows + self.columns) * ROW_BYTES

    @property
    def stages(self) -> int:
        """As many as shared memory holds, at most 8."""
        most = 227 * 1024
        return min(8, (most - WORD_BYTES) // (self.stage_bytes + BARRIER_BYTES))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.stages * (self.stage_bytes + BARRIER_BYTES) + WORD_BYTES

    def constants(self, dtype: str, geglu: bool) -> tuple[tuple[str, str], ...]:
        """The kernel's preprocessor definitions."""
        return (
            ("ELEMENT", ELEMENTS[dtype]),
            ("TILE_ROWS", str(self.rows)),
            ("TILE_COLUMNS", str(self.columns)),
            ("STAGES", str(self.stages)),
            ("GROUPS_DOWN", str(self.groups_down)),
            ("CLUSTER", str(self.cluster)),
            ("APART", str(int(self.apart))),
            ("GEGLU", str(int(geglu))),
        )

    def instructions(self, copy: str) -> tuple[str, ...]:
        """What the machine code must have: the product's shape, copies, registers handed over."""
        shared = ("UTMALDG.2D.MULTICAST",) if self.cluster > 1 else ()
        return (f"HGMMA.64x{self.group[1]}x16.F32", f"UTMALDG.{copy}", *shared, "USETMAXREG")

    def takes(self, geglu: bool) -> bool:
        """Whether its columns are whole pairs of groups of values and gates; `apart` is for geglu.

        Other ends are short: by the model below, little is won where they hide behind products.
        """
        return self.group[1] % 32 == 0 if geglu else not self.apart


@dataclass(frozen=True, slots=True)
class Cut:
    """A product in tiles, the depth of each perhaps in splits."""

    tile: Tile
    tiles: int  # of all blocks of a cluster together
    blocks: int  # of DEPTH, of one tile
    splits: int  # none of them empty

    @property
    def name(self) -> str:
        """The tile and the splits."""
        return f"{self.tile.name} {self.splits}"

    @property
    def split_blocks(self) -> int:
        """Of the depth, in each split but the last."""
        return -(-self.blocks // self.splits)

    @property
    def partial_bytes(self) -> int:
        """What the splits leave for the last of each tile: float32 sums, or nothing."""
        size = self.tile.rows * self.tile.columns * 4
        return self.counters * self.splits * size

    @property
    def counters(self) -> int:
        """Of splits that are done; one for each block's tile where there are splits."""
        return self.tiles * self.tile.cluster if self.splits > 1 else 0

    def launch(self, limits: Limits) -> Launch:
        """A block for each multiprocessor, or fewer where there is less to do."""
        side = self.tile.cluster
        clusters = min(self.tiles * self.splits, max(1, limits.multiprocessors // side))
        return Launch(
            grid=(clusters * side, 1, 1),
            block=(THREADS, 1, 1),
            shared_bytes=self.tile.shared_bytes,
            cluster=(side, 1, 1) if side > 1 else None,
        )

    def cycles(self, limits: Limits, *, geglu: bool = False) -> float:
        """How long it takes, by a simple model.

        A multiprocessor multiplies at best 2,048 pairs a cycle; its shared memory gives and takes
        128 bytes a cycle: each warpgroup reads both its factors, and copies write the next ones; L2
        gives 5,120 bytes a cycle to all. Nine tenths of that in practice; each tile's end and each
        launch cost some more. What splits leave is written and read again at some 16 bytes a cycle
        of each multiprocessor.
        """
        tile = self.tile
        rows, columns = tile.group
        multiply = tile.rows * tile.columns * DEPTH / 2048
        read = (1 if tile.apart else 2) * (rows // 64) * (64 + columns) * ROW_BYTES
        fetched = (tile.rows + tile.columns / tile.cluster) * ROW_BYTES
        from_l2 = fetched * limits.multiprocessors / 5120
        block = max(multiply, (read + tile.stage_bytes) / 128, from_l2) / 0.9
        busiest = -(-self.tiles * self.splits // max(1, limits.multiprocessors // tile.cluster))
        end = 1000 + tile.rows * tile.columns / (5 if geglu else 16)
        ends = 1 if tile.apart else busiest  # Others hide behind products.
        total = 2000 + busiest * self.split_blocks * block + ends * end
        if self.splits > 1:
            total += 2000 + 2 * self.partial_bytes / (16 * limits.multiprocessors)
        return total


def cuts(
    tiles: Iterable[Tile],
    count: Callable[[Tile], int],
    blocks: int,
    limits: Limits,
    *,
    geglu: bool = False,
) -> tuple[Cut, ...]:
    """All cuts worth measuring, the likely fastest first; `count` gives the tiles of clusters.

    The depth is split only where whole tiles fill the chip badly.
    """
    found: dict[tuple[str, int], Cut] = {}
    for tile, wanted in product(tiles, SPLITS):
        if not tile.takes(geglu):
            continue
        number, each = count(tile), -(-blocks // wanted)
        cut = Cut(tile, number, blocks, -(-blocks // each))
        few = number < 2 * limits.multiprocessors and each >= LEAST_BLOCKS
        if cut.splits == 1 or few:
            found[tile.name, cut.splits] = cut
    return tuple(sorted(found.values(), key=lambda cut: cut.cycles(limits, geglu=geglu)))


def suits(dtype: str, rows: int, columns: int, widths: tuple[int, ...], limits: Limits) -> bool:
    """Whether whole tiles of 64 and more are not mostly empty; `widths` are filled up to DEPTH."""
    filled = sum(-(-width // DEPTH) * DEPTH for width in widths)
    enough = rows >= 32 and columns >= 64 and 2 * sum(widths) > filled
    return limits.arch == ARCH and dtype in ELEMENTS and enough


# 128 x 160 makes 128 tiles of SDXL's 2,048 x 1,280, for 132 multiprocessors; bfloat16 is the VAE's,
# whose last level has 128 channels. 256 rows read less for each product, where there are so many.
_OF_BOTH = (Tile(128, 256, cluster=2), Tile(128, 128))
_WIDE = (Tile(256, 160, cluster=2), Tile(128, 160, cluster=2), Tile(128, 160))
_OF_FLOAT16 = (*_WIDE, *_OF_BOTH, Tile(64, 160, 1))
_OF_128_CHANNELS = Tile(256, 128, cluster=2)
OF_CONVOLUTIONS = {
    "float16": (*_OF_FLOAT16, _OF_128_CHANNELS),
    "bfloat16": (*_OF_BOTH, _OF_128_CHANNELS),
}
OF_PRODUCTS = {
    "float16": (*_OF_FLOAT16, Tile(256, 80), Tile(128, 160, cluster=2, apart=True)),
    "bfloat16": _OF_BOTH,
}

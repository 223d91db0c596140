"""Tiles of a product on sm_90a: how a persistent block shares one out, and what fills the chip."""

from dataclasses import dataclass

from diffusion_rt.kernels.driver.launch import Launch, Limits

ARCH = 90
WARPGROUP = 128
THREADS = 3 * WARPGROUP  # one warpgroup asks for copies, two multiply
DEPTH = 64  # elements along the depth in one stage of the ring
ROW_BYTES = 2 * DEPTH
BARRIER_BYTES = 16  # of a stage: one full, one empty
REGISTERS = 168  # of a thread at the start, before the warpgroups shrink and grow
ELEMENTS = {"float16": "half", "bfloat16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of the output that one block makes at a time.

    The two multiplying warpgroups share its rows (`groups_down` 2) or its columns (1).
    """

    rows: int
    columns: int
    groups_down: int = 2

    @property
    def name(self) -> str:
        """Such as 128x160."""
        return f"{self.rows}x{self.columns}"

    @property
    def group(self) -> tuple[int, int]:
        """Rows and columns of one warpgroup."""
        return self.rows // self.groups_down, self.columns * self.groups_down // 2

    @property
    def stage_bytes(self) -> int:
        """One stage of the ring: a block of both factors."""
        return (self.rows + self.columns) * ROW_BYTES

    @property
    def stages(self) -> int:
        """As many as shared memory holds, at most 8."""
        most = 227 * 1024
        return min(8, most // (self.stage_bytes + BARRIER_BYTES))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.stages * (self.stage_bytes + BARRIER_BYTES)

    def constants(self, dtype: str, geglu: bool) -> tuple[tuple[str, str], ...]:
        """The kernel's preprocessor definitions."""
        return (
            ("ELEMENT", ELEMENTS[dtype]),
            ("TILE_ROWS", str(self.rows)),
            ("TILE_COLUMNS", str(self.columns)),
            ("STAGES", str(self.stages)),
            ("GROUPS_DOWN", str(self.groups_down)),
            ("GEGLU", str(int(geglu))),
        )

    def instructions(self, copy: str) -> tuple[str, ...]:
        """What the machine code must have: the product's shape, copies, registers handed over."""
        return (f"HGMMA.64x{self.group[1]}x16.F32", f"UTMALDG.{copy}", "USETMAXREG")

    def takes(self, geglu: bool) -> bool:
        """Whether a warpgroup's columns hold whole pairs of groups of values and gates."""
        return not geglu or self.group[1] % 32 == 0

    def count(self, rows: int, columns: int) -> int:
        """Tiles of an output, in which rows and columns of the last may be left over."""
        return -(-rows // self.rows) * -(-columns // self.columns)

    def launch(self, tiles: int, limits: Limits) -> Launch:
        """A block for each multiprocessor, or fewer where there are fewer tiles."""
        return Launch(
            grid=(min(tiles, limits.multiprocessors), 1, 1),
            block=(THREADS, 1, 1),
            shared_bytes=self.shared_bytes,
        )

    def cycles(self, tiles: int, blocks: int, limits: Limits) -> float:
        """How long so many tiles of so many blocks of the depth take, by a simple model.

        A multiprocessor multiplies at best 2,048 pairs a cycle, and its shared memory gives and
        takes 128 bytes a cycle: each warpgroup reads both its factors, and copies write the next
        ones. Nine tenths of that in practice; each tile's end and each launch cost some more.
        """
        rows, columns = self.group
        multiply = self.rows * self.columns * DEPTH / 2048
        read = 2 * (rows // 64) * (64 + columns) * ROW_BYTES
        block = max(multiply, (read + self.stage_bytes) / 128) / 0.9
        busiest = -(-tiles // limits.multiprocessors)
        return 2000 + busiest * (blocks * block + 1000 + self.rows * self.columns / 16)


TILES = (
    Tile(128, 160),
    Tile(128, 256),
    Tile(128, 128),
    Tile(256, 80),
    Tile(64, 160, 1),
)

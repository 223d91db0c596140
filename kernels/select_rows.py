"""`select_rows`: the timestep projections of one evaluation, brought to where the model reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.kernels.driver.arguments import Parameter
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch

THREADS = 256
VECTOR = 16  # bytes of one load
MOST_BLOCKS = 8  # for each table; a thread takes several loads where a row is long

TABLE = np.dtype([("rows", "<u8"), ("destination", "<u8"), ("bytes", "<i8")])

PARAMETERS = (
    Parameter("cursor", "pointer", alignment=4),
    Parameter("tables", "pointer", alignment=8),  # TABLE [tables]
)


def tables(entries: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    """TABLE rows from (address of the table, destination, bytes of one evaluation's row).

    Raises Misuse where one does not divide by 16.
    """
    for entry in entries:
        if any(number % VECTOR for number in entry) or entry[2] <= 0:
            raise Misuse(f"a table of rows {entry}: addresses and sizes must divide by {VECTOR}")
    return np.array(list(entries), TABLE)


def launch(table_count: int, longest_bytes: int) -> Launch:
    """A few blocks for each table."""
    blocks = min(-(-longest_bytes // (THREADS * VECTOR)), MOST_BLOCKS)
    return Launch(grid=(blocks, table_count, 1), block=(THREADS, 1, 1))


def reference(rows: NDArray[Any], index: int) -> NDArray[Any]:
    """The row of one evaluation, [bytes] from [evaluations, bytes]."""
    row: NDArray[Any] = rows[index]
    return row

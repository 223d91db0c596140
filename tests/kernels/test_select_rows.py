"""`select_rows`: one row of each table, nothing else."""

import numpy as np
import pytest

from diffusion_rt.kernels import select_rows
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from diffusion_rt.kernels.step_table import cursor
from support.kernel_bench import KernelBench


@pytest.mark.parametrize("index", [0, 2, 3])
def test_rows_of_any_length_reach_their_place(index: int) -> None:
    bench = KernelBench([CATALOGUE["select_rows"]])
    rng = np.random.default_rng(index)
    sizes = (16, 2560, 4096 + 16, 70_000)
    tables = [rng.integers(0, 256, (3, size), np.uint8) for size in sizes]
    sources = [bench.put(table) for table in tables]
    places = [bench.poisoned([size], np.uint8) for size in sizes]
    entries = [
        (source.address, place.address, size)
        for source, place, size in zip(sources, places, sizes, strict=True)
    ]
    now = cursor(3)
    now["index"] = index
    rows = bench.put(select_rows.tables(entries))
    bench.run("select_rows", select_rows.launch(len(sizes), max(sizes)), bench.put(now), rows)
    for table, place in zip(tables, places, strict=True):
        poison = np.full(table.shape[1], 0xFF, np.uint8)
        wanted = select_rows.reference(table, index) if index < 3 else poison
        np.testing.assert_array_equal(bench.get(place, [table.shape[1]], np.uint8), wanted)


@pytest.mark.parametrize("entry", [(8, 16, 16), (16, 8, 16), (16, 16, 24), (16, 16, 0)])
def test_tables_that_do_not_divide_are_refused(entry: tuple[int, int, int]) -> None:
    with pytest.raises(Misuse, match="divide by 16"):
        select_rows.tables([entry])

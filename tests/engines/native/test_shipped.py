"""Tables of tactics that ship: read, kept, refused, and what the model of ways says today."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.bench.tactics_table import reckoned
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.shipped import (
    TABLES,
    Table,
    add_table,
    by_way,
    path_of,
    read_tables,
)
from diffusion_rt.engines.trt.buckets import parse_buckets

RECKONED = Table(
    source="reckoned",
    chip="H200",
    multiprocessors=132,
    ways=by_way([("Product(b)", "second", 2.0), ("Product(a)", "second", 1.234), ("c", "one", 3)]),
)
MEASURED = replace(
    RECKONED, source="measured", driver="13.0", date="2026-12-01", run="0123456789abcdef"
)


def test_what_is_written_is_read_measured_ones_first(tmp_path: Path) -> None:
    small = replace(RECKONED, multiprocessors=114)
    for table in (small, RECKONED, MEASURED, RECKONED):
        path = add_table(90, table, tmp_path)
    assert path == path_of(90, tmp_path)
    assert read_tables(90, tmp_path) == (MEASURED, small, RECKONED)
    assert read_tables(89, tmp_path) == ()
    assert list(RECKONED.ways) == ["one", "second"]
    assert RECKONED.ways["second"] == {"Product(a)": 1.23, "Product(b)": 2.0}
    assert RECKONED.of_sizes() == {"Product(a)": "second", "Product(b)": "second", "c": "one"}


@pytest.mark.parametrize("missing", ["driver", "date", "run"])
def test_a_measured_table_says_where_and_when(missing: str) -> None:
    with pytest.raises(BadInput, match="driver, date and run"):
        replace(MEASURED, **{missing: ""})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a reckoned table"):
        replace(MEASURED, source="reckoned")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole.update(version=2), "version: got 2"),
        (lambda whole: whole.update(arch=89), "of sm_89"),
        (lambda whole: whole["tables"][0].update(source="guessed"), "source: got"),
        (lambda whole: whole["tables"][0].update(multiprocessors=0), "multiprocessors: got 0"),
        (lambda whole: whole["tables"][0]["ways"].update(x={"a": -1.0}), "got -1.0"),
        (lambda whole: whole["tables"][0]["ways"].update(x={"\n": 1.0}), "printable text"),
        (lambda whole: whole["tables"][0].update(date="today"), "a day such as"),
        (lambda whole: whole.update(other=1), "other: unknown field"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: object, said: str) -> None:
    path = add_table(90, RECKONED, tmp_path)
    whole = json.loads(path.read_bytes())
    change(whole)  # type: ignore[operator]
    path.write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=f"sm_90.json: .*{said}"):
        read_tables(90, tmp_path)


def test_what_ships_is_small_and_whole() -> None:
    files = sorted(TABLES.iterdir())
    assert [path.name for path in files] == ["sm_90.json"]
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        for table in read_tables(int(path.stem.removeprefix("sm_"))):
            assert len(table.of_sizes()) == sum(map(len, table.ways.values())) > 100


def test_the_reckoned_table_is_what_the_model_of_ways_says_today() -> None:
    """A sample of it: two of the nine sizes, with guidance and without.

    Where the model has changed, make it anew: diffusion-rt bench tactics --reckoned h200.
    """
    arch, found = reckoned("h200", parse_buckets("1024x1024,640x1536"))
    shipped = next(table for table in read_tables(arch) if table.source == "reckoned")
    assert (shipped.chip, shipped.multiprocessors) == (found.chip, found.multiprocessors)
    known = {
        sizes: (way, time) for way, group in shipped.ways.items() for sizes, time in group.items()
    }
    for way, group in found.ways.items():
        for sizes, time in group.items():
            assert known[sizes][0] == way, sizes
            assert known[sizes][1] == pytest.approx(time, abs=0.02), sizes

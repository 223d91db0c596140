"""Tables of tactics: made of what a GPU run leaves, in one command, and told from the reckoned."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.bench import cli, gpu_model
from diffusion_rt.bench.gpu_chip import Chip
from diffusion_rt.bench.gpu_rows import Row, Sink
from diffusion_rt.bench.tactics_table import measured, reckoned
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.shipped import Table, add_table, read_tables
from diffusion_rt.engines.native.tactics import Key, Tactics, hash_of_kernels
from diffusion_rt.engines.native.ways import Way, Ways

CHIP = Chip(name="a chip", arch=90, multiprocessors=132, memory=1 << 37, l2_bytes=1, cuda="13.0")
KEY = Key(chip="a chip", arch=90, multiprocessors=132, driver="13.0", kernels=hash_of_kernels())


def some(sizes: str) -> Ways:
    names = ("first", "second")
    return Ways(sizes, tuple(Way(name=n, variants=(), calls=lambda places: ()) for n in names))


def build_measures(key: Key = KEY, milliseconds: float = 0.012) -> None:
    """What `diffusion-rt build` leaves in the cache of a GPU run."""
    tactics = Tactics(cache_folder("tactics"), key)
    for sizes in ("a", "b"):
        tactics.put(some(sizes), some(sizes).ways[1], 1e3 * milliseconds)
    tactics.overlap = False
    tactics.save()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a GPU run that has built and measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    rows: list[Row] = []
    sink = Sink("native", CHIP, folder, time.time() + 9, "command", "a" * 40, rows.append)
    built = ", ".join(gpu_model.BUILT)
    sink.timed("build", [15.0], {"model": "m", "size": "1024x1024", "engine": built})
    build_measures()
    gpu_model.keep_tactics(sink)
    assert rows[-1].note == "of 2 sizes, in tactics.json"
    return folder


def test_a_run_becomes_the_table_that_ships_by_one_command(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    before = Table(
        source="reckoned", chip="H200", multiprocessors=132, ways={"first": {"a": 10.0, "c": 9.0}}
    )
    add_table(90, before, tables)
    assert cli.main(["tactics", "--measured", str(output), "--tables", str(tables)]) == 0
    found, kept = read_tables(90, tables)
    assert kept == before
    assert (found.source, found.chip, found.driver) == ("measured", "a chip", "13.0")
    assert (len(found.run), len(found.date)) == (16, 10)
    assert found.ways == {"second": {"a": 12.0, "b": 12.0}}
    said = capsys.readouterr().out
    assert "2 sizes, measured for 132 multiprocessors; 1 were reckoned before, 1 of them" in said
    assert "0.01 ms, each once, where it was 0.01 ms" in said
    chosen = Tactics(tmp_path / "none", KEY, tables).chosen
    assert [chosen(some(sizes))[1] for sizes in "abc"] == [
        "shipped (measured)",
        "shipped (measured)",
        "shipped (reckoned)",
    ]


def test_what_was_measured_with_libraries_is_not_left(output: Path) -> None:
    """Nobody else need have them."""
    left = (output / gpu_model.TACTICS).read_bytes()
    build_measures(replace(KEY, libraries="cublaslt-1"), 1.0)
    rows: list[Row] = []
    gpu_model.keep_tactics(Sink("n", CHIP, output, time.time() + 9, "c", "a" * 40, rows.append))
    assert (output / gpu_model.TACTICS).read_bytes() == left
    (path,) = cache_folder("tactics").glob("*-libraries.json")
    (output / gpu_model.TACTICS).write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match="of cublaslt-1 too; build without --libraries"):
        measured(output)


def test_a_folder_that_no_run_has_left(output: Path, tmp_path: Path) -> None:
    (output / "gpu-time.jsonl").unlink()
    with pytest.raises(BadInput, match="no record of a native build"):
        measured(output)
    with pytest.raises(BadInput, match=r"^[^:]*/tactics\.json: no such file; measure again"):
        measured(tmp_path)


def test_graphs_and_chips_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean h200"):
        reckoned("h20")
    with pytest.raises(BadInput, match="this is no checkout"):
        reckoned("h200", graphs=tmp_path / "none.tar.xz")

"""Who starts when, and what is kept of it; the processes are made up."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_rt.bench import cli, disk, startup
from diffusion_rt.bench.launch import Ran, launch
from diffusion_rt.bench.records import ALL, OURS, Record, read
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.runtime.samplers import SAMPLERS
from support.races import case, origin


class Processes:
    """Stands in for `launch`: draws a picture at once, and says what each process took."""

    def __init__(self, wrong: int = 0) -> None:
        self.started: list[str] = []
        self._wrong = wrong

    def __call__(self, command: Sequence[str]) -> Ran:
        name = OURS if "diffusion_rt" in command else "diffusers"
        self.started.append(name)
        turn = len(self.started)
        if "--output" in command:
            pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
            if name == OURS:
                pixels[0, 0, 0] += self._wrong
            path = Path(command[command.index("--output") + 1])
            assert not path.exists(), "an old picture could be taken for a new one"
            Image.fromarray(pixels).save(path)
        seconds = {OURS: 1.0, "diffusers": 8.0}[name] + turn
        return Ran(started_at=0.0, seconds=seconds, peak_rss=100 * turn, said="2.5")


def measured(processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    monkeypatch.setattr(startup, "launch", processes)
    told = startup.commands(case(), model=Path("model"), threads=1, pictures=tmp_path)
    runs, wrong = startup.first_pictures(told, pictures=tmp_path, repeats=2, tell=lambda text: None)
    return startup.records_of_pictures(origin("startup"), runs, wrong, case().setting)


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(wrong=1)
    records = measured(processes, tmp_path, monkeypatch)
    assert processes.started == [OURS, "diffusers", "diffusers", OURS, OURS, "diffusers"]
    found = {(r.measure, r.contender, r.against): r.spread for r in records}
    assert len(found) == 9
    ours, theirs, ratio = (
        found["first-exit", *names]
        for names in ((OURS, None), ("diffusers", None), (OURS, "diffusers"))
    )
    assert ours is not None
    assert theirs is not None
    assert ratio is not None
    assert (ours.min, ours.max, theirs.min, theirs.max) == (5, 6, 11, 14)
    assert (ratio.min, ratio.max) == (11 / 5, 14 / 6)
    memory = found["peak-rss", OURS, None]
    assert memory is not None
    assert memory.max == 500


def test_another_picture_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(wrong=2)
    (record,) = measured(processes, tmp_path, monkeypatch)
    assert processes.started == [OURS, "diffusers"]
    assert record.measure == ALL
    assert record.wrong == "pixels differ by 2 of 255, at most 1"


def test_both_are_told_the_same(tmp_path: Path) -> None:
    found = startup.commands(case(), model=Path("m"), threads=3, pictures=tmp_path)
    ours, theirs = (dict(itertools.pairwise(words)) for words in (found[OURS], found["diffusers"]))
    for flag in ("--model", "--width", "--steps", "--guidance-scale", "--seed", "--threads", "--"):
        assert ours[flag] == theirs[flag]
    assert ours["--threads"] == "3"
    assert ours["--"] == "a star"


def test_the_sub_command_measures_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "launch", Processes())
    monkeypatch.setattr(disk, "records_of_environment", lambda origin: [])
    words = ["--sizes", "64x64", "--samplers", "ddim", "--repeats", "3", "--threads", "1"]
    assert cli.main(["startup", *words, "--output", str(tmp_path)]) == 0
    found = {record.measure: record for record in read(tmp_path) if record.against}
    assert set(found) == {"first-picture", "first-exit", "peak-rss", "imported"}
    setting = found["first-exit"].setting
    assert (setting["size"], setting["images"], setting["sampler"]) == ("64x64", 1, "ddim")
    assert all(record.spread and record.spread.n == 3 for record in found.values())


def test_a_sampler_is_told_to_both_and_only_where_it_is_named(tmp_path: Path) -> None:
    def told(sampler: str) -> list[list[str]]:
        found = startup.commands(
            case(sampler=sampler), model=Path("m"), threads=1, pictures=tmp_path, sampler=True
        )
        return list(found.values())

    ours, theirs = told("ddim")
    assert ours[ours.index("--sampler") + 1] == "ddim"
    assert theirs[theirs.index("--scheduler") + 1] == "DDIMScheduler"
    alone = next(name for name, sampler in SAMPLERS.items() if sampler.scheduler is None)
    with pytest.raises(BadInput, match="diffusers has none of it"):
        told(alone)


def test_a_picture_is_there_when_it_has_its_name(tmp_path: Path) -> None:
    """Written to a temporary name, forced to disk and renamed, each of which takes time."""
    path, partial = tmp_path / "a.png", tmp_path / "a.partial"
    partial.touch()
    os.utime(partial, (1e9, 1e9))  # whenever it was last written to
    partial.rename(path)
    there = path.stat().st_ctime
    assert startup.there_after(path, Ran(started_at=there - 2, seconds=3, peak_rss=1)) == 2
    assert startup.there_after(path, Ran(started_at=there - 2, seconds=1, peak_rss=1)) == 1
    assert startup.there_after(path, Ran(started_at=there + 1, seconds=1, peak_rss=1)) == 0


def test_an_import_ends_before_its_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(command: Sequence[str]) -> Ran:
        said = "a warning\n103.5" if "-c" in command else "usage"
        return Ran(started_at=100.0, seconds=9.0, peak_rss=1, said=said)

    monkeypatch.setattr(startup, "launch", launch)
    runs = startup.imports(2, lambda text: None)
    records = startup.records_of_imports(origin("startup"), runs)
    found = {(r.measure, r.contender): r.spread and r.spread.p50 for r in records if not r.against}
    assert found == {
        ("imported", OURS): 3.5,
        ("imported", "diffusers"): 3.5,
        ("imported", "python"): 3.5,
        ("help", OURS): 9.0,
    }
    with pytest.raises(Fault, match="other words than the time: no word"):
        startup.imported_after(Ran(started_at=0, seconds=1, peak_rss=1, said="no word"))


def test_python_alone_is_imported_at_once() -> None:
    ran = launch([*startup.PYTHON, "-c", f"pass; {startup.SAY_TIME}"])
    assert 0 < startup.imported_after(ran) <= ran.seconds

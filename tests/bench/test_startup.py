"""Who starts when, and what is kept of it; the processes are made up."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_rt.bench import startup
from diffusion_rt.bench.launch import Ran
from diffusion_rt.bench.records import ALL, OURS, Record
from diffusion_rt.engines.errors import BadInput
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
        return Ran(started_at=0.0, seconds=seconds, peak_rss=100 * turn)


def measured(processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    monkeypatch.setattr(startup, "launch", processes)
    runs, wrong = startup.first_pictures(
        case(),
        model=Path("model"),
        threads=1,
        pictures=tmp_path,
        repeats=2,
        tell=lambda text: None,
    )
    return startup.records_of_pictures(origin("startup"), runs, wrong, case().setting)


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(wrong=1)
    records = measured(processes, tmp_path, monkeypatch)
    assert processes.started == [OURS, "diffusers"] * 3
    found = {(r.measure, r.contender, r.against): r.spread for r in records}
    assert len(found) == 9
    ours, theirs, ratio = (
        found["first-exit", *names]
        for names in ((OURS, None), ("diffusers", None), (OURS, "diffusers"))
    )
    assert ours is not None
    assert theirs is not None
    assert ratio is not None
    assert (ours.min, ours.max, theirs.min, theirs.max) == (4, 6, 12, 14)
    assert (ratio.max, ratio.min) == (12 / 4, 14 / 6)
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
    with pytest.raises(BadInput, match="draws one picture, not 2"):
        startup.commands(case(images=2), model=Path("m"), threads=1, pictures=tmp_path)


def test_a_picture_is_there_before_its_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    written = path.stat().st_mtime
    assert startup.written_after(path, Ran(started_at=written - 2, seconds=3, peak_rss=1)) == 2
    assert startup.written_after(path, Ran(started_at=written - 2, seconds=1, peak_rss=1)) == 1
    assert startup.written_after(path, Ran(started_at=written + 1, seconds=1, peak_rss=1)) == 0

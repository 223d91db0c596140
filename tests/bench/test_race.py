"""Who runs when, who is not timed, and what the records of it say."""

from functools import partial
from typing import Any

import pytest

from diffusion_rt.bench.race import Lane, race, race_apart, records_of
from diffusion_rt.bench.records import ALL, OURS
from diffusion_rt.engines.errors import BadInput
from support.races import FakeContender, case, origin


def run(*contenders: FakeContender, **settings: Any) -> list[Lane]:
    return race(contenders, case(), **{"reference": None, "repeats": 2, "warm_up": 1} | settings)


def test_contenders_take_turns_after_the_gate_and_a_warm_up() -> None:
    log: list[str] = []
    reference, a, b = (FakeContender(name, log) for name in ("reference", "A", "B"))
    lanes = run(a, b, reference=reference)
    assert log == ["reference", "A", "B", *["A", "B"], *["A", "B"] * 2]
    assert [len(lane.rounds) for lane in lanes] == [2, 2]


def test_a_contender_that_draws_something_else_is_never_timed() -> None:
    log: list[str] = []
    reference, ours = FakeContender("diffusers", log), FakeContender(OURS, log)
    planted = FakeContender("compile", log, error=0.01)
    lanes = run(ours, reference, planted, reference=reference)
    assert planted.runs == 1
    assert [lane.wrong is None for lane in lanes] == [True, True, False]
    records = records_of(origin(), lanes, case().setting)
    (wrong,) = (record for record in records if record.contender == "compile")
    assert wrong.measure == ALL
    assert wrong.spread is None
    assert "latents differ by" in str(wrong.wrong)
    assert {record.against for record in records} == {None, "diffusers"}


def test_nobody_is_compared_with_us_when_we_are_wrong() -> None:
    log: list[str] = []
    reference = FakeContender("diffusers", log)
    lanes = run(FakeContender(OURS, log, error=1.0), reference, reference=reference)
    records = records_of(origin(), lanes, case().setting)
    assert [record.measure for record in records] == [ALL, "picture", "step"]
    assert not any(record.against for record in records)


def test_only_timed_runs_count_and_ratios_are_taken_turn_by_turn() -> None:
    log: list[str] = []
    ours = FakeContender(OURS, log, seconds=(100.0, 1.0, 2.0, 4.0))
    theirs = FakeContender("diffusers", log, seconds=(1.0, 3.0, 4.0, 20.0))
    lanes = run(ours, theirs, repeats=3)
    mine, other, ratio = (
        record
        for record in records_of(origin(), lanes, case().setting, ("picture",))
        if record.spread
    )
    assert mine.spread is not None
    assert other.spread is not None
    assert ratio.spread is not None
    assert (mine.spread.n, mine.spread.min, mine.spread.p50, mine.spread.max) == (3, 1, 2, 4)
    assert other.spread.p50 == 4
    assert (ratio.spread.min, ratio.spread.p50, ratio.spread.max) == (2, 3, 5)
    assert (ratio.unit, ratio.against, ratio.contender) == ("ratio", "diffusers", OURS)
    assert mine.peak_rss == 1000


def test_every_lap_of_a_step_counts() -> None:
    (lane,) = run(FakeContender(OURS, []), repeats=4)
    assert lane.seconds("step").n == 4 * 3
    assert lane.seconds("step").p50 == 0.2
    assert lane.measures == ["picture", "step"]


def test_apart_nobody_is_open_beside_another() -> None:
    log: list[str] = []

    def opened(name: str, **more: Any) -> FakeContender:
        log.append(f"{name} opened")
        return FakeContender(name, log, **more)

    openers = {"A": partial(opened, "A"), "B": partial(opened, "B", error=1.0)}
    lanes = race_apart(openers, case(), repeats=2, warm_up=1)
    assert log == ["A opened", *["A"] * 4, "A closed", "B opened", "B", "B closed"]
    assert [lane.wrong is None for lane in lanes] == [True, False]


def test_apart_a_contender_is_closed_whatever_happens() -> None:
    log: list[str] = []

    class Failing(FakeContender):
        def run(self, case: Any) -> Any:
            raise BadInput("no room")

    with pytest.raises(BadInput):
        race_apart({"A": lambda: Failing("A", log)}, case(), repeats=1, warm_up=0)
    assert log == ["A closed"]

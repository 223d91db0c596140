"""Who runs when, who is not timed, and what the records of it say."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Outcome
from diffusion_rt.bench.race import Lane, race, race_apart, records_of
from diffusion_rt.bench.records import ALL, OURS, parse
from diffusion_rt.engines.errors import BadInput, Fault
from diffusion_rt.engines.typed_json import encode
from support.races import FakeContender, case, origin


def run(*contenders: FakeContender, **settings: Any) -> list[Lane]:
    given = {"reference": None, "repeats": 2, "warm_up": 1} | settings
    (lanes,) = race(contenders, [case()], **given)
    return lanes


def test_contenders_take_turns_after_the_gate_and_a_warm_up() -> None:
    log: list[str] = []
    reference, a, b = (FakeContender(name, log) for name in ("reference", "A", "B"))
    lanes = run(a, b, reference=reference, repeats=3)
    assert log == ["reference", "A", "B", *["B", "A"], *["A", "B"], *["B", "A"], *["A", "B"]]
    assert [len(lane.rounds) for lane in lanes] == [3, 3]


def test_every_turn_takes_every_case() -> None:
    log: list[str] = []

    class Telling(FakeContender):
        def run(self, case: Case) -> Outcome:
            log.append(f"{case.width}")
            return super().run(case)

    a, b = Telling("A", log), Telling("B", log, error=1.0)
    cases = [case(), case(width=32)]
    lanes = race((a, b), cases, reference=a, repeats=2, warm_up=0)
    parity = ["16", "A", "16", "A", "16", "B", "32", "A", "32", "A", "32", "B"]
    assert log == [*parity, *["16", "A", "32", "A"] * 2], "one that is wrong has no turns"
    assert [[lane.wrong is None for lane in group] for group in lanes] == [[True, False]] * 2


def test_how_near_a_contender_came_to_the_limit_is_kept() -> None:
    log: list[str] = []
    reference, near = FakeContender("A", log), FakeContender(OURS, log, error=1e-4)
    mine, theirs = run(near, reference, reference=reference)
    assert theirs.parity == 0
    latents = reference.run(case()).arrays["latents"]
    assert mine.parity == pytest.approx(1e-4 / np.abs(latents).max() / 1e-3, rel=1e-2)
    record, *_ = records_of(origin(), [mine, theirs], {})
    assert record.parity == mine.parity


def test_the_most_memory_of_any_turn_is_kept_and_work_is_that_of_an_evaluation() -> None:
    class Growing(FakeContender):
        def peak_rss(self) -> int:
            return (7, 9, 8)[self.runs - 1]

    (lane,) = run(Growing(OURS, []), warm_up=0, repeats=3)
    assert lane.peak_rss == 9
    lane.rounds = [{"evaluation": [1.0], "step": [2.0]}]
    evaluation, step = records_of(origin(), [lane], {}, flop=5, nbytes=6)
    assert (evaluation.flop, evaluation.nbytes, step.flop, step.nbytes) == (5, 6, None, None)


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


def test_a_contender_that_fails_stops_no_other() -> None:
    class Failing(FakeContender):
        def run(self, case: Case) -> Outcome:
            super().run(case)
            raise Fault(f"compile: InductorError: no room\n{'x' * 300}")

    log: list[str] = []
    reference, failing = FakeContender("diffusers", log), Failing("compile", log)
    lanes = run(FakeContender(OURS, log), failing, reference, reference=reference)
    assert log.count("compile") == 1
    assert [len(lane.rounds) for lane in lanes] == [2, 0, 2]
    (told,) = (r for r in records_of(origin(), lanes, {}) if r.contender == "compile")
    assert told.measure == ALL
    assert str(told.absent).startswith(r"failed: compile: InductorError: no room\nxx")
    assert parse(json.dumps(encode(told)).encode(), "told") == told, "a record that can be kept"
    with pytest.raises(Fault):  # what all are held against
        run(FakeContender(OURS, log), reference=failing)
    with pytest.raises(Fault):
        run(Failing(OURS, log), reference, reference=reference)


def test_a_contender_that_fails_while_it_is_timed_has_no_times() -> None:
    class Dying(FakeContender):
        def run(self, case: Case) -> Outcome:
            if self.runs == 3:
                raise Fault("compile: its process ended early")
            return super().run(case)

    log: list[str] = []
    lanes = run(FakeContender(OURS, log), Dying("compile", log), repeats=3, warm_up=1)
    assert [len(lane.rounds) for lane in lanes] == [3, 0]
    assert lanes[1].absent == "failed: compile: its process ended early"
    assert not any(record.against for record in records_of(origin(), lanes, {}))


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

    openers = {"A": partial(opened, "A"), "B": partial(opened, "B")}
    ((a, b),) = race_apart(openers, [case()], repeats=4, warm_up=1)

    def visit(name: str, runs: int) -> list[str]:
        return [f"{name} opened", *[name] * runs, f"{name} closed"]

    first, second, third = (visit("A", runs) + visit("B", runs) for runs in (4, 2, 2))
    assert log == [*first, *second[4:], *second[:4], *third], "parity, warm-up, and two runs or one"
    assert [len(turn["step"]) for turn in a.rounds] == [2 * 3, 3, 3]
    assert (a.seconds("picture").n, a.ratio("picture", b).n) == (4, 3)


def test_apart_a_contender_that_is_wrong_is_opened_once() -> None:
    log: list[str] = []
    openers = {
        "A": lambda: FakeContender("A", log),
        "B": lambda: FakeContender("B", log, error=1.0),
    }
    (lanes,) = race_apart(openers, [case()], repeats=2, warm_up=0)
    assert log == ["A", "A", "A closed", "B", "B closed", "A", "A closed"]
    assert [lane.wrong is None for lane in lanes] == [True, False]
    assert [lane.peak_rss for lane in lanes] == [1000, 1000]


def test_apart_a_contender_is_closed_whatever_happens() -> None:
    log: list[str] = []

    class Failing(FakeContender):
        def run(self, case: Any) -> Any:
            raise BadInput("no room")

    with pytest.raises(BadInput):
        race_apart({"A": lambda: Failing("A", log)}, [case()], repeats=1, warm_up=0)
    assert log == ["A closed"]

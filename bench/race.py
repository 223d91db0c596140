"""Contenders in turn, A B A B, on one case: the gate, then the warm-up, then the clocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Contender, Laps
from diffusion_rt.bench.parity import Arrays, Gate
from diffusion_rt.bench.records import ALL, OURS, Origin, Record
from diffusion_rt.bench.spread import Spread, median, spread

Tell = Callable[[str], None]
Opener = Callable[[], Contender]


@dataclass(slots=True)
class Lane:
    """How one contender fared."""

    name: str
    wrong: str | None = None  # why it was not timed
    rounds: list[Laps] = field(default_factory=list)  # the laps of each timed run
    peak_rss: int | None = None
    peak_device: int | None = None
    absent: str | None = None  # why it cannot do what was asked

    @property
    def measures(self) -> list[str]:
        """What was timed."""
        return list(self.rounds[0]) if self.rounds else []

    def seconds(self, measure: str) -> Spread:
        """Of all laps of all runs."""
        return spread([lap for laps in self.rounds for lap in laps[measure]])

    def ratio(self, measure: str, against: "Lane") -> Spread:
        """How many times as long as this one the other took, turn by turn, by their medians."""
        pairs = zip(self.rounds, against.rounds, strict=True)
        return spread([median(theirs[measure]) / median(mine[measure]) for mine, theirs in pairs])


def race(
    contenders: Sequence[Contender],
    case: Case,
    *,
    reference: Contender | None,
    repeats: int,
    warm_up: int,
    gate: Gate = Gate(),  # noqa: B008  (frozen)
    yardstick: Contender | None = None,
    tell: Tell = lambda text: None,
) -> list[Lane]:
    """One lane for each contender, all in memory at once, the clocks of all running in turn.

    Each is first held against what `reference` draws; None is for contenders that do no
    arithmetic. `yardstick` is the reference in the contenders' shorter arithmetic: where it is
    given, twice its own error is allowed.
    """
    lanes = [Lane(contender.name) for contender in contenders]
    if reference is not None:
        tell(f"{case}: parity")
        wanted = reference.run(case).arrays
        if yardstick is not None:
            gate = Gate.twice(wanted, yardstick.run(case).arrays)
        for contender, lane in zip(contenders, lanes, strict=True):
            lane.wrong = gate.refusal(wanted, contender.run(case).arrays)
    right = [pair for pair in zip(contenders, lanes, strict=True) if pair[1].wrong is None]
    for turn in range(warm_up + repeats):
        timed = turn - warm_up
        tell(f"{case}: " + (f"run {timed + 1} of {repeats}" if timed >= 0 else "warm-up"))
        for contender, lane in right:
            seconds = contender.run(case).seconds
            if timed >= 0:
                lane.rounds.append(seconds)
    for contender, lane in right:
        lane.peak_rss, lane.peak_device = contender.peak_rss(), contender.peak_device()
    return lanes


def race_apart(
    openers: Mapping[str, Opener],
    case: Case,
    *,
    repeats: int,
    warm_up: int,
    gate: Gate = Gate(),  # noqa: B008  (frozen)
    tell: Tell = lambda text: None,
) -> list[Lane]:
    """The same where only one contender fits the memory: each is opened, run and closed in turn.

    The first is the reference. Runs are timed one contender after the other, not in alternation.
    """
    lanes = []
    wanted: Arrays | None = None
    for name, opener in openers.items():
        tell(f"{case}: opening {name}")
        contender = opener()
        try:
            lane = Lane(contender.name)
            lanes.append(lane)
            arrays = contender.run(case).arrays
            wanted = arrays if wanted is None else wanted
            lane.wrong = gate.refusal(wanted, arrays)
            if lane.wrong is not None:
                continue
            for turn in range(warm_up + repeats):
                tell(f"{case}: {name}, run {turn + 1} of {warm_up + repeats}")
                seconds = contender.run(case).seconds
                if turn >= warm_up:
                    lane.rounds.append(seconds)
            lane.peak_rss, lane.peak_device = contender.peak_rss(), contender.peak_device()
        finally:
            contender.close()
    return lanes


def records_of(
    origin: Origin,
    lanes: Sequence[Lane],
    setting: Mapping[str, str | int | float],
    kept: Sequence[str] | None = None,
    *,
    flop: int | None = None,
    nbytes: int | None = None,
) -> list[Record]:
    """Of each lane the seconds, of ours the ratios to the others; None keeps every measure.

    `flop` and `nbytes` are what a run comes to at least, where that is known.
    """
    found = []
    ours = next(lane for lane in lanes if lane.name == OURS)
    for lane in lanes:
        if lane.wrong is not None or lane.absent is not None:
            found.append(
                origin.record(ALL, lane.name, setting, wrong=lane.wrong, absent=lane.absent)
            )
        for measure in _kept(lane, kept):
            record = origin.record(
                measure,
                lane.name,
                setting,
                spread=lane.seconds(measure),
                peak_rss=lane.peak_rss,
                peak_device=lane.peak_device,
                flop=flop,
                nbytes=nbytes,
            )
            found.append(record)
    for lane in lanes:
        if lane is ours or not lane.rounds or not ours.rounds:
            continue
        for measure in _kept(lane, kept):
            if measure in ours.measures:
                ratio = ours.ratio(measure, lane)
                record = origin.record(
                    measure, OURS, setting, unit="ratio", against=lane.name, spread=ratio
                )
                found.append(record)
    return found


def _kept(lane: Lane, kept: Sequence[str] | None) -> list[str]:
    return [measure for measure in lane.measures if kept is None or measure in kept]

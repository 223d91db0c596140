"""Contenders in turn, A B B A, on some cases: the gate, then the warm-up, then the clocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Contender, Laps
from diffusion_rt.bench.parity import Arrays, Gate
from diffusion_rt.bench.records import ALL, OURS, Origin, Record
from diffusion_rt.bench.spread import Spread, median, spread
from diffusion_rt.command import escaped, shortened
from diffusion_rt.engines.errors import Fault

Tell = Callable[[str], None]
Opener = Callable[[], Contender]

VISITS = 3  # openings of each contender where one has the memory for itself


@dataclass(slots=True)
class Lane:
    """How one contender fared."""

    name: str
    wrong: str | None = None  # why it was not timed
    parity: float | None = None  # how much of the difference that is allowed there was
    rounds: list[Laps] = field(default_factory=list)  # the laps of each turn
    peak_rss: int | None = None
    peak_device: int | None = None
    absent: str | None = None  # why it cannot do what was asked, or how it failed

    @property
    def fit(self) -> bool:
        """Whether it may be timed."""
        return self.wrong is None and self.absent is None

    @property
    def measures(self) -> list[str]:
        """What was timed."""
        return list(self.rounds[0]) if self.rounds else []

    def seconds(self, measure: str) -> Spread:
        """Of all laps of all turns."""
        return spread([lap for laps in self.rounds for lap in laps[measure]])

    def ratio(self, measure: str, against: "Lane") -> Spread:
        """How many times as long as this one the other took, turn by turn, by their medians."""
        pairs = zip(self.rounds, against.rounds, strict=True)
        return spread([median(theirs[measure]) / median(mine[measure]) for mine, theirs in pairs])

    def hold(self, gate: Gate, wanted: Arrays, got: Arrays) -> None:
        """Say whether the contender may be timed, and how near it came to what it may not do."""
        self.wrong = gate.refusal(wanted, got)
        self.parity = gate.share(wanted, got) if self.wrong is None else None

    def fail(self, failed: Fault) -> None:
        """Take the contender out, and say why; what fails in our own engine is raised."""
        if self.name == OURS:
            raise failed
        self.absent = shortened(escaped(f"failed: {failed}"), 300)
        self.rounds.clear()

    def weigh(self, contender: Contender) -> None:
        """Keep the most memory that any run took."""
        for name, found in (
            ("peak_rss", contender.peak_rss()),
            ("peak_device", contender.peak_device()),
        ):
            if found is not None:
                setattr(self, name, max(found, getattr(self, name) or 0))


def race(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    *,
    reference: Contender | None,
    repeats: int,
    warm_up: int,
    gate: Gate = Gate(),  # noqa: B008  (frozen)
    yardstick: Contender | None = None,
    tell: Tell = lambda text: None,
) -> list[list[Lane]]:
    """For each case a lane for each contender, all in memory at once, in turn.

    A turn takes every case once, and in it each contender; every second turn begins with the last
    of them. So whatever the machine does in between meets all cases and all contenders alike. Each
    is first held against what `reference` draws; None is for contenders that do no arithmetic. A
    peer that fails stops no other; a Fault of our own engine is raised.
    `yardstick` is the reference in the contenders' shorter arithmetic: where it is given, twice its
    own error is allowed.
    """
    found = [[Lane(contender.name) for contender in contenders] for _ in cases]
    for case, lanes in zip(cases, found, strict=True):
        if reference is None:
            break
        tell(f"{case}: parity")
        wanted = reference.run(case).arrays
        allowed = gate
        if yardstick is not None:
            allowed = Gate.twice(wanted, yardstick.run(case).arrays)
        for contender, lane in zip(contenders, lanes, strict=True):
            try:
                lane.hold(allowed, wanted, contender.run(case).arrays)
            except Fault as failed:
                lane.fail(failed)
    for turn in range(-warm_up, repeats):
        for case, lanes in zip(cases, found, strict=True):
            tell(f"{case}: " + (f"run {turn + 1} of {repeats}" if turn >= 0 else "warm-up"))
            pairs = [pair for pair in zip(contenders, lanes, strict=True) if pair[1].fit]
            for contender, lane in pairs[:: -1 if turn % 2 else 1]:
                try:
                    seconds = contender.run(case).seconds
                    if turn >= 0:
                        lane.rounds.append(seconds)
                        lane.weigh(contender)
                except Fault as failed:
                    lane.fail(failed)
    return found


def race_apart(
    openers: Mapping[str, Opener],
    cases: Sequence[Case],
    *,
    repeats: int,
    warm_up: int,
    gate: Gate = Gate(),  # noqa: B008  (frozen)
    tell: Tell = lambda text: None,
) -> list[list[Lane]]:
    """The same where only one contender fits the memory: each is opened, run and closed in turn.

    The first is the reference. A turn is all that one runs between its opening and its closing:
    there are VISITS of them, the repeats shared among them.
    """
    found = [[Lane(name) for name in openers] for _ in cases]
    wanted: dict[Case, Arrays] = {}
    visits = min(VISITS, repeats)
    for visit in range(visits):
        runs = len(range(visit, repeats, visits))
        for place, name in list(enumerate(openers))[:: -1 if visit % 2 else 1]:
            if all(lanes[place].wrong is not None for lanes in found):
                continue
            tell(f"opening {name}, {visit + 1} of {visits}")
            contender = openers[name]()
            try:
                for case, lanes in zip(cases, found, strict=True):
                    lane = lanes[place]
                    lane.weigh(contender)  # loading counts: it must fit, too
                    if visit == 0:
                        arrays = contender.run(case).arrays
                        lane.hold(gate, wanted.setdefault(case, arrays), arrays)
                    if lane.wrong is not None:
                        continue
                    turn: dict[str, list[float]] = {}
                    for run in range(-warm_up, runs):
                        tell(f"{case}: {name}, " + (f"run {run + 1}" if run >= 0 else "warm-up"))
                        laps = contender.run(case).seconds
                        lane.weigh(contender)
                        if run >= 0:
                            for measure, seconds in laps.items():
                                turn.setdefault(measure, []).extend(seconds)
                    lane.rounds.append(turn)
            finally:
                contender.close()
    return found


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

    `flop` and `nbytes` are what an evaluation of the UNet comes to at least, where that is known.
    """
    found = []
    ours = next(lane for lane in lanes if lane.name == OURS)
    for lane in lanes:
        if lane.wrong is not None or lane.absent is not None:
            found.append(
                origin.record(ALL, lane.name, setting, wrong=lane.wrong, absent=lane.absent)
            )
        for measure in _kept(lane, kept):
            evaluated = measure == "evaluation"
            record = origin.record(
                measure,
                lane.name,
                setting,
                spread=lane.seconds(measure),
                parity=lane.parity,
                peak_rss=lane.peak_rss,
                peak_device=lane.peak_device,
                flop=flop if evaluated else None,
                nbytes=nbytes if evaluated else None,
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

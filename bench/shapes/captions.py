"""The little world of `shapes-xl`: scenes of coloured shapes, and the English for them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("white", "black", "gray", "brown", "navy", "beige")
SHAPES = ("circle", "square", "triangle", "star", "diamond")
SIZES = ("small", "medium", "large")
PLACES = (
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the center",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)
COUNTS = ("one", "two", "three")
# relation -> the cells (indices into PLACES) of the thing named first and of the other one
RELATIONS = {"left of": (3, 5), "right of": (5, 3), "above": (1, 7), "below": (7, 1)}
ROWS = {2: (3, 5), 3: (3, 4, 5)}  # cells of two or three equal things

Kind = Literal["single", "relation", "pair", "row"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape; `cell` is its place on a 3x3 grid, row by row."""

    colour: str
    shape: str
    size: str
    cell: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; `kind` and `relation` say how captions speak of it."""

    background: str
    things: tuple[Thing, ...]
    kind: Kind = "single"
    relation: str = ""

    @property
    def key(self) -> str:
        """The picture in one line, whatever the wording: what is held out is held out by this."""
        things = sorted(f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things)
        return "; ".join([self.background, *things])


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept out of training (one in ten, by its key's CRC-32)."""
    return zlib.crc32(scene.key.encode()) % 10 == 0


def sample_scene(rng: np.random.Generator, kind: Kind) -> Scene:
    """A random scene of one kind, held out or not."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def thing(cell: int) -> Thing:
        return Thing(pick(COLOURS), pick(SHAPES), pick(SIZES), cell)

    background = pick(BACKGROUNDS)
    if kind == "single":
        return Scene(background, (thing(int(rng.integers(9))),))
    if kind == "relation":
        relation = pick(tuple(RELATIONS))
        first, second = RELATIONS[relation]
        return Scene(background, (thing(first), thing(second)), kind, relation)
    if kind == "pair":
        first, second = (int(c) for c in rng.choice(9, 2, replace=False))
        return Scene(background, (thing(first), thing(second)), kind)
    model = thing(0)
    count = 2 if rng.random() < 0.5 else 3
    size = model.size if count == 2 else "small"  # three larger ones would touch
    row = tuple(Thing(model.colour, model.shape, size, c) for c in ROWS[count])
    return Scene(background, row, kind)


@dataclass(frozen=True, slots=True)
class Wording:
    """Which parts of a scene a caption leaves unsaid, and which form it takes."""

    colour: bool = True
    size: bool = True
    place: bool = True
    background: bool = True
    form: int = 0


FULL = Wording()
FORMS = 3


def sample_wording(rng: np.random.Generator, omit: float = 0.07) -> Wording:
    """A random wording; each part is left out with probability `omit`."""
    colour, size, place, background = (bool(s) for s in rng.random(4) >= omit)
    return Wording(colour, size, place, background, int(rng.integers(FORMS)))


def caption(scene: Scene, wording: Wording = FULL) -> str:
    """The scene in words, at most 21 of them."""

    def noun(thing: Thing, count: int = 1) -> str:
        words = ["a"] if count == 1 else [COUNTS[count - 1]]
        words += [thing.size] if wording.size else []
        words += [thing.colour] if wording.colour else []
        return " ".join([*words, thing.shape + ("s" if count > 1 else "")])

    def placed(thing: Thing) -> str:
        return f"{noun(thing)} {PLACES[thing.cell]}" if wording.place else noun(thing)

    things = scene.things
    if scene.kind == "relation":
        to_the = "to the " if wording.form == 1 and "of" in scene.relation else ""
        body = f"{noun(things[0])} {to_the}{scene.relation} {noun(things[1])}"
    elif scene.kind == "row":
        body = noun(things[0], len(things))
    else:
        body = " and ".join(placed(t) for t in things)
    if not wording.background:
        return body
    if wording.form == 2:
        return f"{body}, {scene.background} background"
    return f"{body} on a {scene.background} background"


def fragment(scene: Scene, rng: np.random.Generator) -> str:
    """A few words true of the scene's first thing, as a negative prompt has them: "red", "star"."""
    thing = scene.things[0]
    words = [thing.size, thing.colour, thing.shape]
    said = rng.random(3) < (0.15, 0.5, 0.35)
    parts = [word for word, is_said in zip(words, said, strict=True) if is_said]
    return " ".join(parts) if parts else f"{scene.background} background"


def vocabulary() -> list[str]:
    """Every word (and mark) a caption can hold, each one token of the model's tokenizers."""
    words = {"a", "and", "on", "background", "to", "the", ","}
    words.update(COLOURS, BACKGROUNDS, SIZES, SHAPES, (s + "s" for s in SHAPES), COUNTS[1:])
    words.update(w for phrase in (*PLACES, *RELATIONS) for w in phrase.split())
    return sorted(words)

"""Prompt syntax to weighted chunks of tokens, as AUTOMATIC1111 users write it.

    (x)      weight 1.1          ((x))    1.1 * 1.1: nested weights multiply
    (x:1.3)  weight 1.3          \\( \\) \\[ \\] \\\\    the characters themselves
    [x]      weight 1 / 1.1      BREAK    what follows starts a new chunk

Round and square brackets are matched apart from each other. One that is never closed reaches to the
end of the prompt; one that was never opened is text, and so is a weight outside round brackets.
AUTOMATIC1111's prompt editing (`[a:b:0.5]`, `[a|b]`) and `AND` have no meaning here and are text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import TextEncoderRecord
from diffusion_rt.runtime.tokens import Tokenizer, check_text

MAX_WEIGHT = 10.0
MAX_CHUNKS = 32
BACKTRACK = 20  # tokens that a chunk may leave free so as to end at a comma, as in AUTOMATIC1111
UP, DOWN = 1.1, 1 / 1.1

MARK = re.compile(
    r"\\[()\[\]\\]"
    r"|[()\[\]]"
    r"|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)"
    r"|\bBREAK\b"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text of one weight."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a text encoder reads at once: start, tokens, end and padding, each with its weight."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def parse(prompt: str, name: str = "prompt") -> list[list[Segment]]:
    """The sections of a prompt, cut at each BREAK, as segments whose neighbours differ in weight.

    `name` is what an error calls the prompt. Raises BadInput where the text is no valid Unicode or
    too long, or where a weight lies outside -10 to 10.
    """
    check_text(name, prompt)
    sections: list[list[Segment]] = [[]]
    for weight, run in groupby(_pieces(prompt), key=_weight):
        if weight is None:
            sections.extend([] for _ in run)
            continue
        text = "".join(piece.text for piece in run if piece)
        if not abs(weight) <= MAX_WEIGHT:
            raise BadInput(
                f"{name} gives {shown(text)} the weight {weight:g}; give -10 to 10, "
                "or set emphasis to none where brackets are plain text"
            )
        sections[-1].append(Segment(text, weight))
    return sections


def literal(prompt: str, name: str = "prompt") -> list[list[Segment]]:
    """The prompt as one section in which no character has a meaning of its own."""
    check_text(name, prompt)
    return [[Segment(prompt, 1.0)]]


def _weight(piece: Segment | None) -> float | None:
    return None if piece is None else piece.weight


def _pieces(prompt: str) -> Iterator[Segment | None]:
    """The text between marks, in order, with None for each BREAK."""
    marks = list(MARK.finditer(prompt))
    factors, closers = _match(marks)
    round_brackets, square_brackets = [1.0], [1.0]  # products of the factors of those open
    place = 0
    for index, mark in enumerate(marks):
        symbol = mark[0]
        stack = square_brackets if symbol in ("[", "]") else round_brackets
        weight = round_brackets[-1] * square_brackets[-1]
        if place < mark.start():
            yield Segment(prompt[place : mark.start()], weight)
        place = mark.end()
        if index in factors:
            stack.append(stack[-1] * factors[index])
        elif index in closers:
            stack.pop()
        elif symbol == "BREAK":
            yield None
        else:
            yield Segment(symbol.removeprefix("\\"), weight)
    if place < len(prompt):
        yield Segment(prompt[place:], round_brackets[-1] * square_brackets[-1])


def _match(marks: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """The factor of each opening bracket, and which marks close one, both by index."""
    factors: dict[int, float] = {}
    closers: set[int] = set()
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for index, mark in enumerate(marks):
        symbol, number = mark[0], mark[1]
        if symbol in waiting:
            waiting[symbol].append(index)
            factors[index] = UP if symbol == "(" else DOWN
        elif symbol[0] in ":)]" and (opened := waiting["[" if symbol == "]" else "("]):
            closers.add(index)
            opener = opened.pop()
            if number is not None:
                factors[opener] = float(number)
    return factors, closers


def chunks(
    sections: Sequence[Sequence[Segment]],
    tokenizer: Tokenizer,
    encoder: TextEncoderRecord,
    name: str = "prompt",
) -> list[Chunk]:
    """The chunks of a parsed prompt for one text encoder, one at least.

    A section longer than a chunk is cut after its last comma where that leaves at most 20 tokens
    free, so that a phrase stays whole, else where the chunk is full. Raises BadInput where more
    than 32 chunks are needed.
    """
    found: list[Chunk] = []
    ids: list[int] = []
    for section in sections:
        ids, weights = [], []
        for segment in section:
            tokens = tokenizer.encode(segment.text)
            ids += tokens
            weights += [segment.weight] * len(tokens)
        edges = _edges(ids, encoder.max_length - 2, tokenizer.comma)
        found += [_chunk(ids[a:b], weights[a:b], encoder) for a, b in pairwise(edges)]
    if len(sections) > 1 and not ids:
        found.pop()  # nothing follows the last BREAK
    if len(found) > MAX_CHUNKS:
        raise BadInput(
            f"{name} fills {len(found)} chunks of {encoder.max_length - 2} tokens; "
            f"shorten it to {MAX_CHUNKS}"
        )
    return found


def empty_chunk(encoder: TextEncoderRecord) -> Chunk:
    """The chunk of an empty prompt, which also fills up a prompt of fewer chunks than another."""
    return _chunk([], [], encoder)


def _edges(ids: Sequence[int], size: int, comma: int | None) -> list[int]:
    """Where chunks of at most `size` tokens begin, and the end of the last one."""
    edges = [0]
    while len(ids) - edges[-1] > size:
        full = edges[-1] + size
        cut = full
        if ids[full] != comma:
            earliest = max(edges[-1], full - BACKTRACK)
            cut = next((i + 1 for i in range(full - 1, earliest - 1, -1) if ids[i] == comma), full)
        edges.append(cut)
    return [*edges, len(ids)]


def _chunk(ids: Sequence[int], weights: Sequence[float], encoder: TextEncoderRecord) -> Chunk:
    room = encoder.max_length - 2 - len(ids)
    return Chunk(
        (encoder.bos_token_id, *ids, encoder.eos_token_id, *[encoder.pad_token_id] * room),
        (1.0, *weights, 1.0, *[1.0] * room),
    )

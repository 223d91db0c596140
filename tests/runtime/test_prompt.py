"""The prompt grammar, and how a prompt is cut into chunks."""

import re
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import TextEncoderRecord
from diffusion_rt.runtime.prompt import (
    BACKTRACK,
    Chunk,
    Segment,
    chunks,
    empty_chunk,
    literal,
    parse,
)
from diffusion_rt.runtime.tokens import Tokenizer
from support.checkpoints import make_tokenizer

UP, DOWN = pytest.approx(1.1), pytest.approx(1 / 1.1)


def weighed(prompt: str) -> list[list[tuple[str, Any]]]:
    return [[(s.text, s.weight) for s in section] for section in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "segments"),
    [
        ("", []),
        ("a red cat", [("a red cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", UP), (" cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", DOWN), (" cat", 1)]),
        ("((red))", [("red", pytest.approx(1.21))]),
        ("(a (red:2) cat:0.5)", [("a ", 0.5), ("red", 1.0), (" cat", 0.5)]),
        ("([red])", [("red", pytest.approx(1))]),
        ("(red: -.5 )", [("red", -0.5)]),
        ("(red:+2.)", [("red", 2)]),
        ("(red:0)", [("red", 0)]),
        # Escapes, and a backslash before anything else is itself.
        (r"a \(red\) cat \[\]", [("a (red) cat []", 1)]),
        (r"a\\(red)", [("a\\", 1), ("red", UP)]),
        (r"C:\dir", [("C:\\dir", 1)]),
        (r"(red\:1.3)", [("red\\", 1.3)]),
        # Never closed: to the end. Never opened: text.
        ("a (red cat", [("a ", 1), ("red cat", UP)]),
        ("a [red cat", [("a ", 1), ("red cat", DOWN)]),
        ("a red) cat]", [("a red) cat]", 1)]),
        ("a red:1.3) cat", [("a red:1.3) cat", 1)]),
        ("(a:1.5) b:1.3)", [("a", 1.5), (" b:1.3)", 1)]),
        ("(a [b) c]", [("a ", UP), ("b", pytest.approx(1)), (" c", DOWN)]),
        # What is no number is text.
        ("(red:x)", [("red:x", UP)]),
        ("(red:1.3.1)", [("red:1.3.1", UP)]),
        ("(red:1e5)", [("red:1e5", UP)]),
        ("(red:nan)", [("red:nan", UP)]),
        ("(red:٣)", [("red:٣", UP)]),
        ("(red:)", [("red:", UP)]),
        ("[red:1.3]", [("red:1.3", DOWN)]),
        # Neighbours of one weight are one text: brackets that do nothing do not cut a word.
        ("light(house:1)", [("lighthouse", 1)]),
        ("light()house", [("lighthouse", 1)]),
        ("(:1.3)", []),
        ("BREAKING unBREAK break", [("BREAKING unBREAK break", 1)]),
    ],
)
def test_weights(prompt: str, segments: list[tuple[str, Any]]) -> None:
    assert weighed(prompt) == [segments]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("a,BREAK,b", [[("a,", 1)], [(",b", 1)]]),
        ("BREAKBREAK", [[("BREAKBREAK", 1)]]),
        ("BREAK BREAK", [[], [(" ", 1)], []]),
        ("(a BREAK b:2)c", [[("a ", 2)], [(" b", 2), ("c", 1)]]),
    ],
)
def test_break_ends_a_section_inside_brackets_too(
    prompt: str, sections: list[list[tuple[str, Any]]]
) -> None:
    assert weighed(prompt) == sections


def escaped(text: str) -> str:
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda text: "BREAK" not in text
)


@given(text=WORDS)
def test_an_escaped_text_is_itself(text: str) -> None:
    assert parse(escaped(text)) == [[Segment(text, 1.0)] if text else []]
    assert literal(text) == [[Segment(text, 1.0)]]


@dataclass(frozen=True)
class Group:
    """A bracket of a generated prompt."""

    opening: str
    weight: float
    ending: str
    parts: tuple["str | Group", ...]

    def written(self) -> str:
        inner = "".join(p.written() if isinstance(p, Group) else escaped(p) for p in self.parts)
        return self.opening + inner + self.ending

    def letters(self, outer: float) -> list[tuple[str, float]]:
        weight = outer * self.weight
        found: list[tuple[str, float]] = []
        for part in self.parts:
            found += (
                part.letters(weight) if isinstance(part, Group) else [(c, weight) for c in part]
            )
        return found


BRACKETS = st.one_of(
    st.just(("(", 1.1, ")")),
    st.just(("[", 1 / 1.1, "]")),
    st.decimals(-1, 1.5, places=2).map(lambda w: ("(", float(w), f": {w} )")),
)
GROUPS = st.recursive(
    WORDS,
    lambda inner: st.builds(
        lambda b, parts: Group(b[0], b[1], b[2], tuple(parts)),
        BRACKETS,
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
).map(lambda part: part if isinstance(part, Group) else Group("(", 1.1, ")", (part,)))


@given(group=GROUPS)
def test_nested_weights_multiply(group: Group) -> None:
    (section,) = parse(group.written())
    letters = [(c, segment.weight) for segment in section for c in segment.text]
    expected = group.letters(1.0)
    assert [c for c, _ in letters] == [c for c, _ in expected]
    assert [w for _, w in letters] == pytest.approx([w for _, w in expected])
    assert all(a.weight != b.weight for a, b in pairwise(section))


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*"()[]:\\ a1.", ":1.3)", "BREAK", "((", "]]"]), max_size=40))
def test_any_prompt_is_read_without_losing_text(parts: list[str]) -> None:
    prompt = "".join(parts)
    try:
        sections = parse(prompt)
    except BadInput as error:
        if "the weight" not in str(error):
            raise
        return
    text = "".join(segment.text for section in sections for segment in section)
    assert [c for c in text if c == "a"] == [c for c in prompt if c == "a"]
    rest = iter(prompt)
    assert all(c in rest for c in text)  # in order, nothing added


@pytest.mark.parametrize("prompt", ["(a:11)", "(a:-10.5)", "(a:" + "9" * 400 + ")", "(" * 30 + "a"])
def test_a_weight_out_of_bounds_is_refused(prompt: str) -> None:
    with pytest.raises(BadInput, match='negative_prompt gives "a" the weight') as refused:
        parse(prompt, "negative_prompt")
    assert "\n" not in str(refused.value)
    assert parse(prompt.replace("a", ""))[0] == []  # a bracket around nothing weighs nothing


def test_hostile_prompts_take_no_time() -> None:
    started = time.process_time()
    for prompt in (
        "([" * 30_000,
        ":1" * 30_000,
        ": " * 30_000,
        ":" + " " * 60_000,
        "(:" + "1" * 60_000,
    ):
        parse(prompt)
    parse("\\(" * 30_000)
    with pytest.raises(BadInput):
        parse("(a" * 30_000)
    assert time.process_time() - started < 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path, pad_token="!", age="old")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.open(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder(reference: Any) -> TextEncoderRecord:
    return TextEncoderRecord(
        graph="text_encoder",
        tokenizer="tokenizer",
        max_length=77,
        bos_token_id=reference.bos_token_id,
        eos_token_id=reference.eos_token_id,
        pad_token_id=reference.pad_token_id,
        layers=2,
        width=8,
        pooled=False,
    )


def inner(chunk: Chunk, encoder: TextEncoderRecord) -> list[tuple[int, float]]:
    """The tokens between start and end, with their weights; checks what stands around them."""
    assert len(chunk.ids) == len(chunk.weights) == encoder.max_length
    assert chunk.ids[0] == encoder.bos_token_id
    end = chunk.ids.index(encoder.eos_token_id)
    assert set(chunk.ids[end + 1 :]) <= {encoder.pad_token_id}
    assert chunk.weights[0] == 1
    assert set(chunk.weights[end:]) == {1.0}
    return list(zip(chunk.ids[1:end], chunk.weights[1:end], strict=True))


@settings(max_examples=150, deadline=None)
@given(text=st.lists(WORDS, max_size=10).map(" ".join))
def test_a_short_plain_prompt_is_as_diffusers_has_it(
    text: str, tokenizer: Tokenizer, reference: Any, encoder: TextEncoderRecord
) -> None:
    if len(tokenizer.encode(text)) > 75:
        return
    expected = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    (chunk,) = chunks(literal(text), tokenizer, encoder)
    assert list(chunk.ids) == expected
    assert set(chunk.weights) == {1.0}
    assert chunks(parse(escaped(text)), tokenizer, encoder) == [chunk]


SIMPLE = st.lists(
    st.sampled_from(["cat", "a", ",", ",", "(dog:1.3)", "lighthouse,", "[sea, sky]", "BREAK"]),
    max_size=400,
)


@settings(max_examples=100, deadline=None)
@given(words=SIMPLE, length=st.integers(3, 77))
def test_long_prompts_are_cut_at_commas_and_lose_nothing(
    words: list[str], length: int, tokenizer: Tokenizer, encoder: TextEncoderRecord
) -> None:
    prompt = " ".join(words)
    size = length - 2
    short = TextEncoderRecord(
        **{n: getattr(encoder, n) for n in encoder.__slots__} | {"max_length": length}
    )
    sections = parse(prompt)
    try:
        found = [inner(chunk, short) for chunk in chunks(sections, tokenizer, short)]
    except BadInput as error:
        if not re.search(r"fills (3[3-9]|[4-9]\d|\d{3,}) chunks", str(error)):
            raise
        return
    assert 1 <= len(found) <= 32
    comma = tokenizer.comma
    for section in sections:
        whole = [(i, s.weight) for s in section for i in tokenizer.encode(s.text)]
        if section is sections[-1] and len(sections) > 1 and not whole:
            break
        taken: list[tuple[int, float]] = []
        while True:
            chunk = found.pop(0)
            taken += chunk
            assert len(chunk) <= size
            if len(taken) >= len(whole):
                break
            # Cut early only behind the last comma that a full chunk has among its last 20.
            full = whole[len(taken) - len(chunk) :][:size]
            following = whole[len(taken) - len(chunk) + size][0]
            late = [i for i in range(max(0, size - BACKTRACK), size) if full[i][0] == comma]
            assert len(chunk) == (late[-1] + 1 if late and following != comma else size)
        assert taken == whole
    assert not found


def test_breaks_make_chunks(tokenizer: Tokenizer, encoder: TextEncoderRecord) -> None:
    def texts(prompt: str) -> list[list[int]]:
        return [
            [i for i, _ in inner(chunk, encoder)]
            for chunk in chunks(parse(prompt), tokenizer, encoder)
        ]

    a, b = tokenizer.encode("a"), tokenizer.encode("cat")
    assert texts("") == [[]]
    assert texts("a BREAK cat") == [a, b]
    assert texts("a BREAK") == texts("a BREAK  ") == [a]
    assert texts("BREAK a") == [[], a]
    assert texts("BREAK") == [[]]
    assert texts("a BREAK BREAK cat") == [a, [], b]
    assert texts("a " * 75 + "BREAK cat") == [a * 75, b]
    assert chunks(parse(""), tokenizer, encoder) == [empty_chunk(encoder)]


def test_at_most_32_chunks(tokenizer: Tokenizer, encoder: TextEncoderRecord) -> None:
    assert len(chunks(literal("a " * 75 * 32), tokenizer, encoder)) == 32
    with pytest.raises(BadInput, match="prompt_2 fills 33 chunks of 75 tokens; shorten it to 32"):
        chunks(literal("a " * 75 * 32 + "a"), tokenizer, encoder, "prompt_2")

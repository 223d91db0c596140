"""The tokenizer files, as transformers reads them."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from diffusion_rt.bench.shapes import tokenizers
from diffusion_rt.bench.shapes.captions import vocabulary


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    tokenizers.write(folder / "one", tokenizers.EOS)
    tokenizers.write(folder / "two", "!")
    return CLIPTokenizer.from_pretrained(folder / "one"), CLIPTokenizer.from_pretrained(
        folder / "two"
    )


def test_each_caption_word_is_one_token(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    for tokenizer in pair:
        ids = [tokenizer(word).input_ids for word in vocabulary()]
        assert all(len(i) == 3 for i in ids)
        assert len({i[1] for i in ids}) == len(vocabulary())


def test_marks_and_padding_are_sdxls(pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
    first, second = pair
    assert first.eos_token_id == max(first.get_vocab().values()) != 2
    assert (first.pad_token_id, second.pad_token_id) == (first.eos_token_id, 0)
    assert second.convert_ids_to_tokens(0) == "!"
    assert first.model_max_length == second.model_max_length == tokenizers.MAX_LENGTH


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_has_tokens(pair: tuple[CLIPTokenizer, CLIPTokenizer], text: str) -> None:
    tokenizer = pair[0]
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    if text.strip().isascii() and tokenizer.eos_token not in text.lower():
        assert tokenizer.eos_token_id not in ids[1:-1]  # nothing unknown: bytes cover all


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abcdefg", min_size=1, max_size=8), min_size=1, max_size=12, unique=True))
def test_merges_make_any_words_whole(words: list[str]) -> None:
    pairs = tokenizers.merges(words)
    rank = {pair: i for i, pair in enumerate(pairs)}
    for word in words:  # byte-pair encoding as CLIP applies it: the earliest merge first
        parts = [*word[:-1], word[-1] + "</w>"]
        while found := [p for p in itertools.pairwise(parts) if p in rank]:
            parts = tokenizers.merged(parts, min(found, key=lambda p: rank[p]))
        assert parts == [word + "</w>"]

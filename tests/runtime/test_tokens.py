"""Token ids against transformers' CLIPTokenizer, on any text and every kind of folder."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.tokens import MAX_BYTES, Tokenizer, check_text
from support.checkpoints import BOS, EOS, make_tokenizer

TRICKY = (
    f"{BOS} {EOS} <|ENDOFTEXT|> <|endoftext| ! </w> Ġ #version <pad> <cat-toy> 's 'T don't we'LL "
    "’s ' 2026 ٣ ½ Ⅷ x² é e\u0301 \u0301 \ud55c \u1112\u1161\u11ab ﬁ \u212b \u0130 ẞ ΑΣ ǅ 日本語 "
    "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 🇩🇪 ❤\ufe0f \U0010ffff \ue000 \ufffe \u200b \ufeff "
    "a,lighthouse RED/Circle backgroundbackground above,below ((small)):1.3"
).split(" ")
SPACES = ["  ", "\t\n", "\r", "\x00", "\x1f", "\x85", "\xa0", "\u2028", "\u3000"]
PIECES = [*TRICKY, *SPACES, "x" * 300]
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join),
)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizer folders as the ages of transformers have written them, and mixtures of these."""
    root = tmp_path_factory.mktemp("tokenizers")
    size = 0
    for age in ("current", "old"):
        for name, pad in (("first", EOS), ("second", "!")):
            size = make_tokenizer(root / f"{age} {name}", pad_token=pad, age=age)

    def copy(source: str, name: str) -> Path:
        return Path(shutil.copytree(root / source, root / name))

    (copy("old second", "no map") / "special_tokens_map.json").unlink()
    (copy("old second", "no config") / "tokenizer_config.json").unlink()
    (copy("no map", "bare") / "tokenizer_config.json").unlink()

    # transformers 4: the special tokens stand in the config, by id; one was added for an embedding.
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    four = copy("no map", "transformers 4")
    tokens = {
        "0": {"content": "!", "normalized": False, "special": True, **flags},
        str(size - 2): {"content": BOS, "normalized": True, "special": True, **flags},
        str(size - 1): {"content": EOS, "normalized": False, "special": True, **flags},
        str(size): {"content": "<cat-toy>", "normalized": True, "special": False, **flags},
    }
    edit(four / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=tokens))

    # Special tokens of one content but unlike flags.
    def unlike(names: dict[str, Any]) -> None:
        names["unk_token"] = {"content": EOS, "normalized": False, **flags}
        names["pad_token"] = names["eos_token"]

    edit(copy("old second", "unlike marks") / "special_tokens_map.json", unlike)
    # transformers 3: added tokens in a file of their own; this one swallows the space before it.
    three = copy("old first", "transformers 3")
    (three / "added_tokens.json").write_text(json.dumps({"<pad>": size, "<cat-toy>": size + 1}))
    edit(three / "special_tokens_map.json", lambda m: m.update(mask_token="<pad>"))
    five = copy("current second", "extra")
    extra = {"extra_special_tokens": ["<pad>", "<cat-toy>"]}
    edit(five / "tokenizer_config.json", lambda c: c.update(extra))
    strip = {"content": "<cat-toy>", "normalized": False, "special": True, **flags, "lstrip": True}
    both = copy("old second", "both, unlike")
    shutil.copy(root / "current first" / "tokenizer.json", both)
    edit(both / "tokenizer.json", lambda t: t["added_tokens"].append({"id": size, **strip}))
    edit(
        copy("old first", "split") / "tokenizer_config.json",
        lambda c: c.update(split_special_tokens=True),
    )
    # Merges as pairs or as strings, and bytes that the vocabulary lacks: unknown, one by one.
    joined = copy("current first", "merges as strings")
    edit(
        joined / "tokenizer.json",
        lambda t: t["model"].update(merges=[" ".join(m) for m in t["model"]["merges"]]),
    )
    few = copy("old first", "few bytes")
    letters = [*"abcdefgh!", "Ã", "©", *(f"{c}</w>" for c in "abcdefgh!©"), BOS, EOS]
    (few / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(letters)}))
    (few / "merges.txt").write_bytes(b"#version: 0.2\r\n")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    return {
        name: (Tokenizer.open(path), CLIPTokenizer.from_pretrained(path))
        for name, path in folders.items()
    }


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@example(text="a <|EndOfText|>!b wow!! ! <cat-toy> x<pad>y")
@example(text="\ud7a3\u11a8 e\u0301\u0327 \u1e9e \u03a3\u03b1\u03c3 İstanbul")
@example(text="x" * 5000)
def test_ids_are_those_of_transformers(text: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    for name, (ours, theirs) in pairs.items():
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == expected, name


def test_size_and_comma(folders: dict[str, Path], pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    for name, (ours, theirs) in pairs.items():
        assert ours.size == len(theirs), name
        expected = theirs.get_vocab().get(",</w>")
        assert ours.comma == expected, name
    assert pairs["few bytes"][0].comma is None


def test_threads_share_one_tokenizer(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours = pairs["current second"][0]
    texts = [f"a {'small ' * i}lighthouse {i} wow! 猫" for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ours.encode, texts)) == [ours.encode(text) for text in texts]


def test_a_lone_surrogate_and_a_huge_text_are_refused(
    pairs: dict[str, tuple[Tokenizer, Any]],
) -> None:
    ours = pairs["old first"][0]
    with pytest.raises(BadInput, match="lone surrogate at character 2"):
        ours.encode("ab\ud83d")
    assert len(ours.encode("a" * MAX_BYTES)) > 1
    with pytest.raises(BadInput, match=r"prompt_2 has 65538 bytes; give at most 65536"):
        check_text("prompt_2", "猫" * 21846)


TOO_DEEP = "[" * 100_000
HOSTILE: dict[str, tuple[str, str, str | bytes, str]] = {
    "no JSON": ("old", "vocab.json", "{", "vocab.json: no valid JSON"),
    "deep": ("old", "vocab.json", TOO_DEEP, "vocab.json: "),
    "list": ("old", "vocab.json", "[1]", "vocab.json: got a list of 1, wants an object"),
    "empty": ("old", "vocab.json", "{}", "unknown token"),
    "id as text": ("old", "vocab.json", '{"a": "0"}', "ids are not 0 to 0"),
    "id as float": ("old", "vocab.json", '{"a": 0.0}', "ids are not 0 to 0"),
    "id as bool": ("old", "vocab.json", '{"a": false}', "ids are not 0 to 0"),
    "negative id": ("old", "vocab.json", '{"a": -1}', "ids are not 0 to 0"),
    "gap": ("old", "vocab.json", '{"a": 0, "b": 2}', "2 ids are not 0 to 1"),
    "twice": ("old", "vocab.json", '{"a": 0, "b": 0}', "2 ids are not 0 to 1"),
    "huge id": ("old", "vocab.json", '{"a": 1e400}', "ids are not"),
    "digits": ("old", "vocab.json", '{"a": ' + "9" * 5000 + "}", "number too long"),
    "surrogate": ("old", "vocab.json", '{"\\ud800": 0, "<|endoftext|>": 1}', "vocab.json: "),
    "no pair": ("old", "merges.txt", "#version: 0.2\na b\na b c\n", 'line "a b c" is not two'),
    "blank line": ("old", "merges.txt", "a b\n\n", 'line "" is not two pieces'),
    "unknown piece": ("old", "merges.txt", "a nowhere\n", "merges.txt|nowhere"),
    "latin-1": ("old", "merges.txt", b"a \xff\n", "merges.txt: no UTF-8 at byte 2"),
    "config list": ("old", "tokenizer_config.json", "[]", "wants an object"),
    "config token": ("old", "tokenizer_config.json", '{"bos_token": 7}', "got 7"),
    "config flag": (
        "old",
        "tokenizer_config.json",
        '{"bos_token": {"content": "x", "lstrip": 1}}',
        "is no token",
    ),
    "added id": (
        "old",
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"-1": {"content": "x"}}}',
        "no token's id",
    ),
    "added list": ("old", "tokenizer_config.json", '{"added_tokens_decoder": []}', "an object"),
    "extra": ("old", "tokenizer_config.json", '{"extra_special_tokens": {"a": 1}}', "wants a list"),
    "token surrogate": ("old", "special_tokens_map.json", '{"bos_token": "\\udc00"}', "Unicode"),
    "added": ("old", "added_tokens.json", '{"x": "y"}', "no token's id"),
    "no model": ("current", "tokenizer.json", "{}", "holds no byte-pair model"),
    "unigram": ("current", "tokenizer.json", '{"model": {"type": "Unigram"}}', "no byte-pair"),
    "no merges": ("current", "tokenizer.json", '{"model": {"vocab": {}}}', "merges: got null"),
    "merge": (
        "current",
        "tokenizer.json",
        '{"model": {"vocab": {}, "merges": [["a", 1]]}}',
        "is not two pieces",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    age, file, content, message = HOSTILE[case]
    folder = Path(shutil.copytree(folders[f"{age} first"], tmp_path / "tokenizer"))
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match=message) as refused:
        Tokenizer.open(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(folder))


def test_a_folder_without_its_files_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"vocab.json and merges.txt are not both here"):
        Tokenizer.open(tmp_path / "nowhere")
    folder = Path(shutil.copytree(folders["old first"], tmp_path / "half"))
    (folder / "merges.txt").unlink()
    with pytest.raises(BadInput, match=r"are not both here"):
        Tokenizer.open(folder)
    with (folder / "merges.txt").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(BadInput, match=r"merges.txt: 1099511627776 bytes"):
        Tokenizer.open(folder)

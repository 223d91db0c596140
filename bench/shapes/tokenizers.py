"""The two tokenizers of `shapes-xl`: CLIP's byte-level BPE, every caption word one token."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffusion_rt.bench.shapes.captions import vocabulary

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32  # tokens, with the two marks; the longest caption has 23


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in GPT-2's and CLIP's vocabularies, in their order.

    A byte that prints stands for itself; the others are moved, in order, to 256 and up.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(moved)]


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al., 2016) that make each word of plain letters one token."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    found: list[tuple[str, str]] = []
    while pairs := Counter(p for parts in spelled for p in itertools.pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        spelled = [merged(parts, best) for parts in spelled]
    return found


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """`parts` with each occurrence of `pair` joined, from the left."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def vocabulary_ids(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: letters, letters that end a word, merges, then the two marks with EOS last.

    EOS must be the highest id: the first text models found it by that.
    """
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += dict.fromkeys(a + b for a, b in pairs)
    return {token: i for i, token in enumerate([*tokens, BOS, EOS])}


def write(folder: Path, pad: str) -> None:
    """Write one tokenizer in CLIP's files; `pad` is its padding token (SDXL: EOS, then "!")."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = merges(vocabulary())
    ids = vocabulary_ids(pairs)

    def mark(token: str) -> dict[str, object]:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"__type": "AddedToken", "content": token, **flags}

    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    config = {
        "add_prefix_space": False,
        "bos_token": mark(BOS),
        "do_lower_case": True,
        "eos_token": mark(EOS),
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": mark(EOS),
    }
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _dump(folder / "tokenizer_config.json", config)
    _dump(folder / "special_tokens_map.json", special)


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

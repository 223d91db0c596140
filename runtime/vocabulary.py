"""A tokenizer folder's files to a vocabulary: its ids, how pieces merge, which are special."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.models import BPE

from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput, shown

CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
SPECIAL_MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
MAX_BYTES = 32 * 1024 * 1024  # of one file; SDXL's largest has under 4 MiB

# Named in tokenizer_config.json; found in a text before any merging.
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
START, END = "<|startoftext|>", "<|endoftext|>"
DEFAULTS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
PAIR = re.compile(r"[^ \n]++ [^ \n]++")
PAIRS = re.compile(r"(?:[^ \n]++ [^ \n]++\n)*+")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer folder says, in the parts the `tokenizers` library is made of."""

    model: BPE
    added: tuple[AddedToken, ...]
    split_special: bool  # True where the text of a special token is only text


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read tokenizer.json or else vocab.json with merges.txt, and the special tokens beside them.

    What each file means, and which one wins, is as in transformers 5. Raises BadInput where a file
    is missing, malformed or too large, or the ids are not 0 to size - 1.
    """
    names = (CONFIG, TOKENIZER, SPECIAL_MAP, ADDED, VOCABULARY, MERGES)
    files = {n: read_bytes(folder / n, MAX_BYTES) for n in names if (folder / n).exists()}
    try:
        config = _object(files, CONFIG)
        whole = _object(files, TOKENIZER)
        added, unknown = _added_tokens(files, config, whole)
        if TOKENIZER in files:
            model = _model_of_json(whole.get("model"), unknown)
        elif VOCABULARY in files and MERGES in files:
            model = _model_of_files(files[VOCABULARY], files[MERGES], unknown)
        else:
            raise BadInput(
                f"{VOCABULARY} and {MERGES} are not both here, nor is {TOKENIZER}; "
                "copy the checkpoint's tokenizer folder"
            )
    except BadInput as error:
        raise BadInput(f"{folder}/{error}") from None
    return Vocabulary(model, tuple(added), config.get("split_special_tokens") is True)


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    return _mapping(name, strict_json.parse(files[name], name))


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{name}: got {shown(value)}, wants an object")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{name}: got {shown(value)}, wants a list")
    return value


# SDXL's two folders hold the same two files: the second tokenizer costs nothing.
@lru_cache(maxsize=1)
def _model_of_files(vocabulary: bytes, merges: bytes, unknown: str) -> BPE:
    try:
        text = merges.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{MERGES}: no UTF-8 at byte {error.start}") from None
    if text.startswith("#version"):
        text = text.partition("\n")[2]
    if text and not text.endswith("\n"):
        text += "\n"
    if not PAIRS.fullmatch(text):
        lines = text.removesuffix("\n").split("\n")
        bad = next(line for line in lines if not PAIR.fullmatch(line))
        raise BadInput(f"{MERGES}: line {shown(bad)} is not two pieces with one space between")
    pieces = text.replace("\n", " ").split(" ")  # far quicker than line by line
    pairs = zip(pieces[0:-1:2], pieces[1::2], strict=True)
    return _model(VOCABULARY, strict_json.parse(vocabulary, VOCABULARY), pairs, unknown)


def _model_of_json(model: Any, unknown: str) -> BPE:
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise BadInput(f"{TOKENIZER} holds no byte-pair model, which CLIP's tokenizer is")
    pairs = []
    for merge in _list(f"{TOKENIZER}: merges", model.get("merges")):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and _strings(pair)):
            raise BadInput(f"{TOKENIZER}: merge {shown(merge)} is not two pieces")
        pairs.append((pair[0], pair[1]))
    return _model(TOKENIZER, model.get("vocab"), pairs, unknown)


def _strings(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _model(name: str, vocabulary: Any, merges: Iterable[tuple[str, str]], unknown: str) -> BPE:
    ids = list(_mapping(name, vocabulary).values())
    if not all(type(number) is int for number in ids) or sorted(ids) != list(range(len(ids))):
        raise BadInput(f"{name}: its {len(ids)} ids are not 0 to {len(ids) - 1}, each once")
    if unknown not in vocabulary:
        raise BadInput(f"{name}: the unknown token {shown(unknown)} is not in the vocabulary")
    try:
        return BPE(
            vocab=vocabulary,
            merges=list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
    except Exception as error:  # the library raises no narrower class
        raise BadInput(f"{name}: {shown(str(error))}") from None


def _added_tokens(
    files: Mapping[str, bytes], config: dict[str, Any], whole: dict[str, Any]
) -> tuple[list[AddedToken], str]:
    """The tokens to add, in order, and the text of the unknown token.

    `whole` is tokenizer.json. Its own list of added tokens, and the two older files, count only
    where tokenizer_config.json (`config`) has no `added_tokens_decoder`.
    """
    named: dict[str, str | AddedToken] = dict(DEFAULTS)
    named |= {key: _token(CONFIG, config[key]) for key in SPECIAL if config.get(key) is not None}
    by_id: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for key, entry in _mapping(CONFIG, config["added_tokens_decoder"]).items():
            by_id[_id(CONFIG, key)] = _flagged(CONFIG, entry)
    else:
        for key, value in _object(files, SPECIAL_MAP).items():
            if key in SPECIAL and value is not None:
                named[key] = _token(SPECIAL_MAP, value, special=True)
        contents = {_content(token) for token in named.values()}
        for text, number in _object(files, ADDED).items():
            special = _text(ADDED, text) in contents
            by_id[_id(ADDED, number)] = AddedToken(text, special=special)
        for entry in _list(TOKENIZER, whole.get("added_tokens", [])):
            number = _mapping(TOKENIZER, entry).get("id")
            by_id[_id(TOKENIZER, number)] = _flagged(TOKENIZER, entry)

    tokens: list[str | AddedToken] = [by_id[number] for number in sorted(by_id)]
    known = {_content(token) for token in tokens}
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens")) or []
    order = [named[key] for key in SPECIAL if key in named]
    order += [_token(CONFIG, token) for token in _list(CONFIG, extra)]
    for token in order:
        # Of two tokens with one content and unlike flags, the one added later holds.
        if _content(token) not in known and token not in tokens:
            tokens.append(token)
    special_contents = {_content(token) for token in named.values()}
    added = [AddedToken(t, special=True) if isinstance(t, str) else t for t in tokens]
    for token in added:
        token.special = token.special or token.content in special_contents
    return added, _content(named["unk_token"])


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _token(name: str, value: Any, *, special: bool = False) -> str | AddedToken:
    if isinstance(value, str):
        return _text(name, value)
    return _flagged(name, {**_mapping(name, value), "special": True} if special else value)


def _flagged(name: str, value: Any) -> AddedToken:
    content = _mapping(name, value).get("content")
    flags = {flag: value[flag] for flag in FLAGS if value.get(flag) is not None}
    if not isinstance(content, str) or not all(isinstance(f, bool) for f in flags.values()):
        raise BadInput(f"{name}: {shown(value)} is no token")
    return AddedToken(_text(name, content), **flags)


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell a lone surrogate
        raise BadInput(f"{name}: token {shown(text)} is not valid Unicode") from None
    return text


def _id(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if type(value) is int and 0 <= value < 10**9:
        return value
    raise BadInput(f"{name}: {shown(value)} is no token's id")

"""Dataclasses to JSON and back; whatever does not fit its type is refused by its exact place."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from diffusion_rt.engines.errors import BadInput, shown


@dataclass(frozen=True, slots=True)
class Between:
    """Bounds of a number, both included: `Annotated[int, Between(1, 64)]`."""

    low: float
    high: float

    def refusal(self, value: Any) -> str | None:
        """What a value must be, where it is not."""
        return None if self.low <= value <= self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Matching:
    """A pattern that a whole string must match, and its name: `Matching(r"[a-z]+", "a word")`."""

    pattern: str
    words: str

    def refusal(self, value: Any) -> str | None:
        """What a value must be, where it is not."""
        return None if re.fullmatch(self.pattern, value) else self.words


_PART = r"(?!\.\.?(/|$))[A-Za-z0-9._+@=,-]+"
_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}

RelativePath = Annotated[
    str,
    Matching(
        rf"(?=.{{1,300}}$){_PART}(/{_PART})*",
        'a path inside the folder, such as "unet/model.safetensors"',
    ),
]
Sha256 = Annotated[str, Matching(r"[0-9a-f]{64}", "64 hexadecimal digits")]
Line = Annotated[str, Matching(r"[^\x00-\x1f\x7f\ud800-\udfff\u2028\u2029]{1,300}", "a short line")]
Word = Annotated[str, Matching(r"[A-Za-z0-9_.-]{1,100}", "a name of letters and digits")]
Symbol = Annotated[str, Matching(r"[A-Za-z_][A-Za-z0-9_]{0,99}", "a symbol's name")]


def encode(value: Any) -> Any:
    """What `json.dumps` takes, from dataclasses, tuples and mappings of plain values."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any, place: str) -> Any:
    """`value`, read from JSON, as the type `kind`.

    BadInput where it does not fit, such as `vae.factor: got "8", wants an integer`; `place` is
    where `value` stands, "" for the whole.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = decode(arguments[0], value, place)
        for limit in arguments[1:]:
            if wanted := limit.refusal(found):
                raise _refusal(place, value, wanted)
        return found
    if origin in (Union, UnionType):
        return _one_of(arguments, value, place)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise _refusal(place, value, " or ".join(shown(name) for name in arguments))
        return value
    if origin is tuple:  # tuple[item, ...]
        if not isinstance(value, list):
            raise _refusal(place, value, "a list")
        return tuple(decode(arguments[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _refusal(place, value, "an object")
        name, item = arguments
        return {
            decode(name, k, f"{place}: name"): decode(item, v, f"{place}[{shown(k)}]")
            for k, v in value.items()
        }
    if is_dataclass(kind):
        return _record(kind, value, place)
    return _plain(kind, value, place)


def _refusal(place: str, value: Any, wanted: str) -> BadInput:
    return BadInput(f"{place}: got {shown(value)}, wants {wanted}")


def _plain(kind: Any, value: Any, place: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _refusal(place, value, _WORDS[kind])
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    """The member of a union that a JSON value of this type can be."""
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    if len(kinds) > 1:
        plain = {get_args(k)[0] if get_origin(k) is Annotated else k: k for k in kinds}
        if type(value) not in plain:
            raise _refusal(place, value, " or ".join(_WORDS[kind] for kind in plain))
        return decode(plain[type(value)], value, place)
    return decode(kinds[0], value, place)


@cache
def _types(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass with their types, resolved once."""
    return get_type_hints(kind, include_extras=True)


def _record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _refusal(place, value, "an object")
    prefix = f"{place}." if place else ""
    types = _types(kind)
    for name in value:
        if name not in types:
            near = get_close_matches(name, types, 1)
            raise BadInput(
                f"{prefix}{name if name.isidentifier() else shown(name)}: unknown field"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    for field in fields(kind):
        if field.name not in value and field.default is MISSING:
            raise BadInput(f"{prefix}{field.name}: missing")
    return kind(**{name: decode(types[name], v, f"{prefix}{name}") for name, v in value.items()})

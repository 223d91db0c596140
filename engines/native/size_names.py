"""Sizes of an operation as text: what tables of tactics know it by."""

from collections.abc import Hashable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from typing import Any

from diffusion_rt.kernels.driver import Misuse


@lru_cache(4096)
def size_name(sizes: Any) -> str:
    """The shortest call of a dataclass that makes its equal, such as Strides(4096, 64, 1).

    What it would have anyway is left out, such as the stride of rows that follow one another; so a
    name is short, and says what is special.
    """
    given = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
    for field in fields(sizes):
        if field.default is MISSING and field.default_factory is MISSING:
            continue
        fewer = {name: value for name, value in given.items() if name != field.name}
        if _makes(sizes, fewer):
            given = fewer
    words = (_word(field, given[field.name]) for field in fields(sizes) if field.name in given)
    return f"{type(sizes).__name__}({', '.join(words)})"


def _makes(sizes: Any, given: dict[str, Any]) -> bool:
    """Whether so few arguments make the same."""
    try:
        return bool(type(sizes)(**given) == sizes)
    except Misuse:
        return False


def _word(field: "Field[Any]", value: Any) -> str:
    said: str = repr(value)
    if is_dataclass(value) and isinstance(value, Hashable):
        said = size_name(value)
    return f"{field.name}={said}" if field.kw_only else said

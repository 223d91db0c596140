"""JSON as every file of ours must be: UTF-8, no name twice in an object, no NaN, not too deep."""

import json
from collections import Counter
from typing import Any, NoReturn

from diffusion_rt.engines.errors import BadInput, shown


class _Refused(ValueError):
    """Carries a reason out of the parser's hooks."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _Refused(f"{shown(counts.most_common(1)[0][0])} is there twice")
    return found


def _constant(word: str) -> NoReturn:
    raise _Refused(f"{word} is no JSON number")


def parse(content: bytes, what: str) -> Any:
    """The value that `content` spells; BadInput, beginning with `what`, where it is broken."""
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except _Refused as refused:
        raise BadInput(f"{what}: {refused}") from None
    except json.JSONDecodeError as broken:
        place = f"line {broken.lineno}, column {broken.colno}"
        raise BadInput(f"{what}: no valid JSON ({broken.msg} at {place})") from None
    except RecursionError:
        raise BadInput(f"{what}: JSON nested too deeply") from None
    except ValueError as broken:  # bytes that are no UTF-8, an integer of thousands of digits
        reason = "not UTF-8" if isinstance(broken, UnicodeDecodeError) else "a number too long"
        raise BadInput(f"{what}: no valid JSON ({reason})") from None

"""The two kinds of failure a user can meet, and how a stranger's value stands in their message."""

import json


class BadInput(ValueError):
    """What was asked for cannot be done as asked; the command line exits with status 2.

    The message is one line: the thing, what it got, what it wants, the way out.
    """


class OutOfMemory(BadInput):
    """What was asked for does not fit the memory there is; asking for less may."""


class NoKernel(BadInput):
    """No kernel runs an operation of this size on this chip; one of a smaller size may be run."""


class Fault(RuntimeError):
    """What was asked for was right and still failed here; the command line exits with status 1."""


def not_finite(evaluation: int, evaluations: int) -> Fault:
    """The fault of latents that are not finite after an evaluation, counted from 1."""
    return Fault(
        f"the latents stopped being finite at evaluation {evaluation} of {evaluations}; "
        "the checkpoint may be damaged, or the guidance scale too high for it"
    )


def shown(value: object, limit: int = 60) -> str:
    """A stranger's value as it may stand in a message: JSON, short, one line."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, str) and len(value) > limit:
        value = value[: limit - 1] + "…"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge integer"
    try:
        # ASCII keeps control characters, line separators and lone surrogates out of terminals.
        return json.dumps(value)
    except TypeError:
        return f"a {type(value).__name__}"

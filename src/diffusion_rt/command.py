"""What the sub-commands share: a parser that fails in one line, and text that is safe to print."""

import argparse
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from diffusion_rt.engines.errors import BadInput

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories that move or hide text
_LONGEST = 1000  # characters of one line of an error


class Partly(Exception):
    """What failed after something was done: the cause is the failure, `done` what JSON tells."""

    def __init__(self, **done: Any) -> None:
        """By name, as JSON can hold it."""
        super().__init__()
        self.done = done


class Parser(argparse.ArgumentParser):
    """argparse in this program's manner: no abbreviations, errors as BadInput with the way out."""

    def __init__(self, **options: Any) -> None:
        """Takes ArgumentParser's own options."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a sub-command. Raises BadInput; SystemExit after `--help`."""
        found, rest = self.parse_known_args(list(argv))
        if not rest:
            return found
        name = rest[0].split("=", 1)[0]
        if name.startswith("-") and name != "-":
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            close = get_close_matches(name, flags, n=1)
            way_out = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            raise BadInput(f"{shortened(name)} is no flag of {self.prog}; {way_out}")
        raise BadInput(
            f"{shortened(rest[0])!r} is one argument too many; quote a text that has blanks in it"
        )

    def error(self, message: str) -> NoReturn:
        """Raise BadInput where argparse would print its usage and exit."""
        if message.endswith("expected one argument"):
            flag = message.removeprefix("argument ").split(":")[0].split("/")[0]
            message = f"{flag} needs a value; one that begins with a dash is written {flag}=VALUE"
        elif message.startswith("the following arguments are required: "):
            missing = message.removeprefix("the following arguments are required: ")
            message = f"{missing} is missing; see {self.prog} --help"
        raise BadInput(message.removeprefix("argument "))


def shortened(text: str, limit: int = 80) -> str:
    """`text`, or its beginning where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(text: str) -> str:
    """`text` in one line that is safe to print, shortened where it is very long."""
    return escaped(shortened(text, _LONGEST))


def escaped(text: str) -> str:
    """`text` with each character escaped that could move a terminal's cursor, or hides text."""
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

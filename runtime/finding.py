"""One line of the doctor's report, and what several checks ask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

State = Literal["ok", "absent", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `fix` is what to type or to read, empty where all is well."""

    state: State
    subject: str
    found: str
    fix: str = ""


Check = Callable[[], Sequence[Finding]]


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def size(count: int) -> str:
    """Bytes in words, such as `1.5 GiB`."""
    unit, name = (1 << 30, "GiB") if count >= 1 << 30 else (1 << 20, "MiB")
    return f"{count / unit:.1f} {name}"

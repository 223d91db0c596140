"""Documents whose tables are made of records: between `<!-- bench:NAME -->` and its end."""

import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_rt.bench.drawing import drawn_from, save
from diffusion_rt.bench.plots import plots
from diffusion_rt.bench.records import Record
from diffusion_rt.bench.tables import TABLES, table
from diffusion_rt.engines.artefact import read_bytes, writing
from diffusion_rt.engines.errors import BadInput

MAX_BYTES = 4 << 20  # of a document
MARK = re.compile(r"^<!-- (/?)bench:(.*?) -->$", re.MULTILINE)


def filled(text: str, records: Sequence[Record], what: str) -> str:
    """A document with every table as the records say; BadInput where its marks are wrong."""
    parts: list[str] = []
    place = 0
    opened: str | None = None
    for mark in MARK.finditer(text):
        closes, name = mark[1] == "/", mark[2]
        if closes != (opened is not None) or (closes and name != opened):
            wanted = f"wants <!-- /bench:{opened} -->" if opened else "nothing is open there"
            raise BadInput(f"{what}: {mark[0]} is out of place; {wanted}")
        if name not in TABLES:
            raise BadInput(f"{what}: there is no table {name!r}; one of {', '.join(TABLES)}")
        if closes:
            parts.append(f"\n{table(name, records)}\n")
        else:
            parts.append(text[place : mark.end()])
        place = mark.start() if closes else mark.end()
        opened = None if closes else name
    if opened is not None:
        raise BadInput(f"{what}: <!-- bench:{opened} --> has no end; add <!-- /bench:{opened} -->")
    return "".join([*parts, text[place:]])


def write(records: Sequence[Record], documents: Sequence[Path], folder: Path) -> list[Path]:
    """Bring documents and plots up to date; the files that changed."""
    wrong = stale(records, documents, folder)
    wanted = plots(records)
    for path in wrong:
        if path in documents:
            with writing(path) as file:
                file.write(filled(_text(path), records, str(path)).encode())
        elif path.name in wanted:
            folder.mkdir(parents=True, exist_ok=True)
            save(wanted[path.name], path)
        else:
            path.unlink()
    return wrong


def stale(records: Sequence[Record], documents: Sequence[Path], folder: Path) -> list[Path]:
    """The documents and plots that are not what the records say, left-over plots included."""
    found = [path for path in documents if filled(text := _text(path), records, str(path)) != text]
    wanted = plots(records)
    found += [folder / name for name, p in wanted.items() if drawn_from(folder / name) != p.sha256]
    found += [path for path in sorted(folder.glob("*.png")) if path.name not in wanted]
    return found


def _text(path: Path) -> str:
    return read_bytes(path, MAX_BYTES).decode("utf-8")

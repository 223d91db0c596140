"""Progress bars on standard error, where somebody is looking at it."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
MANY = 100_000  # of this many things, bytes for the most part, a share is told and no rate


@contextmanager
def progress_bars(stages: Mapping[str, str], *, quiet: bool = False) -> Iterator[Progress]:
    """A `progress(stage, done, total)` that draws one bar for each stage, named by `stages`.

    It draws nothing where standard error is no terminal or a dumb one; NO_COLOR is honoured.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield lambda stage, done, total: None
        return
    from rich.console import Console  # only here: it costs more than the rest of the command line
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.total >= MANY:
                return Text(f"{task.percentage:.0f} %")
            rate = f"  {task.speed:.2f} it/s" if task.speed else ""
            return Text(f"{task.completed:.0f}/{task.total:.0f}{rate}")

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Done(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stages.get(stage, stage), total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield report

"""Progress bars on standard error, where somebody is looking at it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
STAGES = {"text": "reading the prompt", "denoise": "denoising", "decode": "decoding"}


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A `progress(stage, done, total)` for Pipeline.generate that draws one bar for each stage.

    It draws nothing where standard error is no terminal or a dumb one; NO_COLOR is honoured.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield lambda stage, done, total: None
        return
    from rich.console import Console  # only here: it costs more than the rest of the command line
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} it/s" if task.speed else "")

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield report

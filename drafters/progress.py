"""One progress bar for all long work: what is done, how fast, when it ends."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

BAR_WIDTH = 16


def progress() -> Progress:
    """A bar on stderr with count, elapsed time and ETA, then what is done, of one line or several,
    each cut where the terminal ends; silent when stderr is no terminal."""
    console = Console(stderr=True)
    text = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        BarColumn(BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", table_column=text),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, expand=True)

"""One look for the progress bars of all long steps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

# Plain text in notebooks too: the widgets of rich need a package of their own there. And each bar once, when it is
# full: a notebook says that it is a terminal, but keeps every state of the bar.
console = Console(
    stderr=True, force_jupyter=False, force_terminal=False if "ipykernel" in sys.modules else None
)


def progress_bar() -> Progress:
    """A progress display on standard error, so that standard output holds results alone.

    Example:
        >>> with progress_bar() as progress:
        ...     task = progress.add_task("prepare", total=3)
        ...     progress.advance(task)
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` under a progress bar."""
    with progress_bar() as progress:
        yield from progress.track(items, description=description, total=total)

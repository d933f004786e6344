"""A progress bar on stderr for what takes longer than two seconds; any function of the same form may stand for it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

__all__ = ["Advance", "progress_bar"]

_QUIET_S = 2.0


@runtime_checkable
class Advance(Protocol):
    """Tell the bar that `count` more instances are done, with an optional note."""

    def __call__(self, count: int, note: str = "") -> None:
        """Move the bar."""
        ...


@contextmanager
def progress_bar(total: int, show: bool | Advance | None, label: str = "instances") -> Iterator[Advance]:
    """Yield a function that moves the bar; nothing is shown for the first two seconds.

    Args:
        total: Number of steps.
        show: True shows it, False does not, None shows it when stderr is a terminal; a function is moved instead.
        label: What is counted.
    """
    if callable(show):
        yield show
        return
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda count, note="": None
        return
    started, done, bar, task = time.monotonic(), 0, None, None

    def advance(count: int, note: str = "") -> None:
        nonlocal done, bar, task
        done += count
        if bar is None and time.monotonic() - started > _QUIET_S:
            bar = _make_bar()
            bar.start()
            task = bar.add_task(label, total=total, note="")
        if bar is not None and task is not None:
            bar.update(task, completed=done, note=note)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _make_bar() -> Any:
    from rich import progress as rich_progress
    from rich.console import Console

    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )

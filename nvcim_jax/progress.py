"""A progress bar on stderr for what takes longer than two seconds; any function of the same form may stand for it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

__all__ = ["Advance", "progress_bar"]

_QUIET_S = 2.0
_BETWEEN_LINES_S = 20.0


@runtime_checkable
class Advance(Protocol):
    """Tell the bar that `count` more instances are done, with an optional note."""

    def __call__(self, count: int, note: str = "") -> None:
        """Move the bar."""
        ...


@contextmanager
def progress_bar(
    total: int, show: bool | Advance | None, label: str = "instances", *, even: bool = True, lines: bool = False
) -> Iterator[Advance]:
    """Yield a function that moves the bar; nothing is shown for the first two seconds.

    Args:
        total: Number of steps.
        show: True shows it, False does not, None shows it when stderr is a terminal; a function is moved instead.
        label: What is counted.
        even: Whether steps take about as long as each other; only then is the time left shown.
        lines: Whether to write a line now and then where there is no terminal, and `show` is None.
    """
    if callable(show):
        yield show
        return
    terminal = sys.stderr.isatty()
    if not (terminal if show is None else show):
        yield _lines(total, label) if lines and show is None else lambda count, note="": None
        return
    started, done, bar, task = time.monotonic(), 0, None, None

    def advance(count: int, note: str = "") -> None:
        nonlocal done, bar, task
        done += count
        if bar is None and time.monotonic() - started > _QUIET_S:
            bar = _make_bar(even)
            bar.start()
            task = bar.add_task(label, total=total, note="")
        if bar is not None and task is not None:
            bar.update(task, completed=done, note=note)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _lines(total: int, label: str) -> Advance:
    """Return a function that writes a plain line where it has been silent for a while."""
    said, done = time.monotonic() - _BETWEEN_LINES_S + _QUIET_S, 0

    def advance(count: int, note: str = "") -> None:
        nonlocal said, done
        done += count
        if time.monotonic() - said >= _BETWEEN_LINES_S:
            said = time.monotonic()
            print(f"{label}: {done} of {total}{f', {note}' if note else ''}", file=sys.stderr, flush=True)  # noqa: T201

    return advance


def _make_bar(even: bool) -> Any:
    from rich import progress as rich_progress
    from rich.console import Console

    left = (rich_progress.TimeRemainingColumn(),) if even else ()
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        *left,
        rich_progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )

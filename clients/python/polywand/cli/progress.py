"""The progress bar of a command on many files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

CLEAR_LINE = "\r\x1b[K"


class Bar:
    """A progress bar below the answers; nothing without a click bar."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def hide(self) -> None:
        """Make room for an answer or an error, which may go to the same terminal."""
        if self._bar is not None:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()

    def advance(self) -> None:
        """Count one file, and show the bar."""
        if self._bar is not None:
            self._bar.update(1)


@contextmanager
def progress(count: int, quiet: bool) -> Iterator[Bar]:
    """Show how many of `count` files are done, and how long the rest will take, on standard error.

    Nothing is shown for one file, if `quiet`, or if standard error is not a terminal.
    """
    if quiet or count < 2 or sys.stderr is None or not sys.stderr.isatty():
        yield Bar()
        return
    with click.progressbar(length=count, show_pos=True, file=sys.stderr) as bar:
        yield Bar(bar)

"""The end of a command: complete lines of output, one sentence for an error, and the usual exit codes.

0: success. 1: something failed. 2: the command is wrong. 141: the reader of the output closed the pipe.
SIGINT (Ctrl-C) and SIGTERM end the process by the signal itself, which shells report as 130 and 143.
"""

import errno
import io
import math
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from polywand_common.texts import printable, shown

_ENDINGS = {"SIGINT": "Interrupted.", "SIGTERM": "Terminated.", "SIGHUP": "Terminated: the terminal is gone."}
_ERROR = re.compile("^Error:", re.MULTILINE)
_BROKEN_PIPE_CODE = 128 + 13  # as if SIGPIPE had ended the process


class OutputError(Exception):
    """Standard output cannot be written; the cause is the system's error, if there is one."""


class Stopped(BaseException):
    """A signal to end was received."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Whole(click.IntRange):
    """A whole number in a range."""

    def _describe_range(self) -> str:
        return f"{self.min} to {self.max}"


class Number(click.FloatRange):
    """A finite number in a range."""

    def _describe_range(self) -> str:
        least, most = (None if end is None else f"{end:.12g}" for end in (self.min, self.max))
        if most is None:
            return f"above {least}" if self.min_open else f"{least} or more"
        if self.min_open:
            return f"above {least} and {'below' if self.max_open else 'at most'} {most}"
        return f"{least} to {most}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read one value. NaN is refused here, as click's comparisons accept it."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a number in the range {self._describe_range()}.", param, ctx)
        return number


class Command(click.Command):
    """A click command that ends as this module describes.

    catches_signals: whether SIGINT, SIGTERM and SIGHUP raise Stopped; False if the command has its own handlers.
    """

    catches_signals = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; exit if standalone_mode is true."""
        work = partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        return run(work, self.catches_signals) if standalone_mode else work()

    def invoke(self, ctx: click.Context) -> Any:
        """Run the parsed command. Raises OutputError for a closed pipe, for which click would exit with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputError from error


class Group(Command, click.Group):
    """A `Command` with subcommands."""


def run(work: Callable[[], Any], catches_signals: bool = False) -> NoReturn:
    """Do the work of a command, print its error, if any, and exit. Only a bug gives a traceback."""
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show is not an error
    try:
        with _SIGNALS.caught() if catches_signals else nullcontext():
            code = work()
        _flush()
    except click.ClickException as error:
        shown_error = io.StringIO()
        error.show(shown_error)
        complain(shown_error.getvalue().rstrip("\n"), prefix="")
        with suppress(OutputError):
            _flush()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end_by_signal(signal.SIGINT)
    except Stopped as stopped:
        _end_by_signal(stopped.signum)
    except (OutputError, OSError) as error:
        _end_of_output(error)
    sys.exit(code if isinstance(code, int) else 0)


def shows_colours(stream: TextIO) -> bool:
    """Return whether colours may be written: to a terminal, unless NO_COLOR (https://no-color.org) is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def echo(text: str) -> None:
    """Print a whole line, even if a signal arrives; without its colours where none may be. Raises OutputError."""
    try:
        with _SIGNALS.held():
            _write(f"{_painted(printable(text), sys.stdout)}\n", sys.stdout)
    except OSError as error:
        raise OutputError from error


def _write(text: str, stream: TextIO) -> None:
    """Write all of a text. Python's streams lose the rest if a signal or a full pipe interrupts a write."""
    stream.flush()
    try:
        descriptor = stream.fileno()
    except (io.UnsupportedOperation, ValueError):  # a stream of a test or a notebook
        stream.write(text)
        stream.flush()
        return
    left = memoryview(text.encode(stream.encoding or "utf-8", "replace"))
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def complain(text: str, prefix: str = "Error: ") -> None:
    """Print an error on standard error; ignored if that cannot be written."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            marked = _ERROR.sub(lambda found: click.style(found[0], fg="red"), f"{prefix}{printable(text)}", count=1)
            sys.stderr.write(f"{_painted(marked, sys.stderr)}\n")
            sys.stderr.flush()


def _painted(text: str, stream: TextIO) -> str:
    return text if "\x1b" not in text or shows_colours(stream) else click.unstyle(text)


class _Closed(io.TextIOBase):
    """Replaces standard output that was closed before the start (`>&-`), for which Python has None."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EBADF, "it is closed")


class _Signals:
    """Raises Stopped on SIGINT, SIGTERM and SIGHUP, so that files are cleaned up; ignored signals stay ignored."""

    def __init__(self) -> None:
        self._holds = False
        self._held: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch signals until the block ends."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for name in _ENDINGS:
                signum = getattr(signal, name, None)  # Windows lacks some
                if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
                    before[signum] = signal.signal(signum, self._stop)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a signal until the block ends; a second one raises at once."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            signum, self._held = self._held, None
        if signum is not None:
            raise Stopped(signum)

    def _stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._holds and self._held is None:
            self._held = signum
            return
        raise Stopped(signum)


_SIGNALS = _Signals()  # a process has one set of handlers


def _end_by_signal(signum: int) -> NoReturn:
    """End by the signal itself, so that a shell's loop ends, too."""
    complain(_ENDINGS[signal.Signals(signum).name], prefix="")
    _drop_stdout()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    sys.exit(128 + signum)


def _end_of_output(error: Exception) -> NoReturn:
    cause = error.__cause__ if isinstance(error, OutputError) else error
    _drop_stdout()
    if isinstance(cause, OSError):
        if cause.errno == errno.EPIPE:
            sys.exit(_BROKEN_PIPE_CODE)
        what = "Standard output cannot be written" if cause.filename is None else shown(cause.filename)
        complain(f"{what}: {cause.strerror or cause}.")
    else:
        complain(str(error))
    sys.exit(1)


def _flush() -> None:
    """Flush standard output now: at exit, the interpreter would print its own error. Raises OutputError."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop_stdout()
        raise OutputError from error


def _drop_stdout() -> None:
    """Discard buffered output, so that the interpreter does not report an error at exit."""
    stdout: TextIO | None = sys.stdout
    if stdout is None:
        return
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stdout.fileno())
        os.close(null)

"""Native output: what C libraries print to file descriptor 2, as a few records of our own log.

libjpeg, libpng, libtiff and gRPC's core print to it directly: an image of 600 kB makes libtiff print a million lines.
While a `NativeOutput` is active, descriptor 2 is a pipe, and the log goes to a duplicate of the original one.
"""

import faulthandler
import fcntl
import logging
import os
import select
import sys
import threading
import time
from typing import Any, Self, TextIO

from polywand_server.ops.logs import printable

STDERR = 2
WINDOW_SECONDS = 10.0
# Lines that are logged in a window; further lines are counted.
MAX_LINES = 5
MAX_LINE_BYTES = 300
CHUNK_BYTES = 65_536  # the capacity of the pipe
# Pause between reads: the kernel drops what is written meanwhile beyond the capacity of the pipe.
PAUSE_SECONDS = 0.05
STOP_SECONDS = 2.0

_log = logging.getLogger("polywand.native")


class NativeOutput:
    """Redirects descriptor 2 between `start` and `stop`; can be used once.

    A write to it never blocks: what does not fit into the pipe is dropped. A library may hold the interpreter's lock
    while it prints, and the thread that reads the pipe needs that lock. Child processes inherit the pipe.
    Python's tracebacks and those of fatal signals go to the duplicate. If descriptor 2 was closed, that is /dev/null.
    """

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._lines = _Lines(window_seconds)
        self._thread = threading.Thread(target=self._run, name="native output", daemon=True)

    def start(self) -> None:
        """Redirect descriptor 2; `sys.stderr` and the log's handlers keep writing to the original."""
        self._real = _duplicate(STDERR)
        self._pipe, write_end = map(_above_stderr, os.pipe())
        self._wake, self._waker = map(_above_stderr, os.pipe())
        os.set_blocking(self._pipe, False)
        os.set_blocking(write_end, False)
        os.dup2(write_end, STDERR)
        os.close(write_end)
        self._before = sys.stderr
        self._stderr = open(self._real, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        _replace_stderr(self._before, self._stderr)
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(self._real)
        self._thread.start()

    def stop(self) -> None:
        """Restore descriptor 2, and log what was printed until now."""
        self._stderr.flush()
        os.dup2(self._real, STDERR)
        _replace_stderr(self._stderr, self._before)
        faulthandler.enable(STDERR) if self._had_faulthandler else faulthandler.disable()
        os.write(self._waker, b".")
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            for descriptor in (self._pipe, self._wake, self._waker):
                os.close(descriptor)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        is_stopping = False
        while not is_stopping:
            ready = {descriptor for descriptor, _ in poll.poll(self._lines.milliseconds_left)}
            is_stopping = self._wake in ready
            if self._pipe in ready:
                self._lines.take(_read(self._pipe))
            self._lines.close_window_if_over()
            if not is_stopping:
                time.sleep(PAUSE_SECONDS)
        self._lines.end()


class _Lines:
    """Logs the first lines of each time window, and the number of further ones."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._rest = b""
        self._window_end: float | None = None
        self._logged = 0
        self._left_out = 0

    @property
    def milliseconds_left(self) -> float | None:
        """Time until the window ends; None while no window is open."""
        if self._window_end is None:
            return None
        return max(0.0, self._window_end - time.monotonic()) * 1000

    def take(self, chunk: bytes) -> None:
        """Log printed bytes line by line, up to the limit."""
        self._window_end = self._window_end or time.monotonic() + self._window_seconds
        *lines, rest = (self._rest + chunk).split(b"\n", MAX_LINES - self._logged)
        for line in lines:
            self._log(line)
        if self._logged == MAX_LINES:
            self._left_out += rest.count(b"\n")
            rest = rest[rest.rfind(b"\n") + 1 :]
        self._rest = rest[:MAX_LINE_BYTES]

    def close_window_if_over(self) -> None:
        """At the end of the window, log how many lines were left out."""
        if self._window_end is None or time.monotonic() < self._window_end:
            return
        self._close_window()

    def end(self) -> None:
        """Log the rest."""
        if self._rest and self._logged < MAX_LINES:
            self._log(self._rest)
        self._close_window()

    def _close_window(self) -> None:
        if self._left_out:
            _log.warning("libraries printed at least %d more lines", self._left_out)
        self._window_end, self._logged, self._left_out = None, 0, 0

    def _log(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode(errors="backslashreplace").rstrip()
        if text:
            self._logged += 1
            _log.warning("%s", printable(text))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return b""


def _duplicate(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    except OSError:  # descriptor 2 is closed
        return _above_stderr(os.open(os.devnull, os.O_WRONLY))


def _above_stderr(descriptor: int) -> int:
    """Return the descriptor, or a duplicate of it if it is one of the standard three."""
    if descriptor > STDERR:
        return descriptor
    above = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    os.close(descriptor)
    return above


def _replace_stderr(old: TextIO | None, new: Any) -> None:
    """Replace `sys.stderr`, and the stream of all log handlers that write to the old one."""
    sys.stderr = new
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)

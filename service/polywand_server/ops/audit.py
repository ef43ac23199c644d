"""The audit log: a line for every call, written by a thread. What cannot be written in time is dropped and counted."""

import json
import logging
import os
import queue
import select
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polywand_server.caller import Caller
from polywand_server.ops import metrics

STDERR = "-"
# Lines that wait to be written; they have some kilobytes at most.
MOST_WAITING = 8192
# A pipe that takes nothing for this long is full: the lines of a batch are dropped.
STUCK_SECONDS = 1.0
# For the last lines to be written when the service ends.
STOP_SECONDS = 1.0
# Between two warnings that lines are dropped.
WARN_SECONDS = 60.0
# Lines that are written before the file is looked at again.
BATCH = 64
MAX_CHARS = 256  # of a name
MODE = 0o640

log = logging.getLogger(__name__)


class AuditLog:
    """Appends lines to a file, or to stderr; a file that was moved or removed is made again. path: "-" is stderr.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = None if str(path) == STDERR else path
        self._descriptor = os.dup(sys.stderr.fileno()) if self._path is None else _open(self._path)
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._is_torn = False  # the last line that was written lacks its end
        self._dropped = 0  # since the last warning
        self._warned_at = -WARN_SECONDS
        self._why = ""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def call(self, caller: Caller, method: str, code: str, seconds: float) -> None:
        """Write the line of a call that has ended. code: of its status. seconds: that it took."""
        usage = caller.usage
        line = {
            "timestamp": time.time(),
            "logger": "audit",
            "principal": caller.principal.name[:MAX_CHARS],
            "client": caller.client[:MAX_CHARS],
            "method": method[:MAX_CHARS],
            "models": sorted(name[:MAX_CHARS] for name in usage.models),
            "received_bytes": usage.received_bytes,
            "pixels": usage.pixels,
            "prompts": usage.prompts,
            "frames": usage.frames,
            "errors": usage.errors,
            "code": code,
            "reason": usage.reason,
            "milliseconds": round(1000 * seconds, 3),
            "request_id": caller.request_id,
            "call": str(caller.stream),
            "trace_id": caller.trace_id,
        }
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._drop(1, "lines come faster than they can be written")

    def close(self) -> None:
        """Write what waits, for a short time."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while True:
            batch = [self._lines.get()]
            while len(batch) < BATCH and not self._lines.empty():
                batch.append(self._lines.get())
            lines = [_written(line) for line in batch if line is not None]
            if lines:
                self._write(lines)
            if batch[-1] is None:
                return

    def _write(self, lines: list[bytes]) -> None:
        written = 0
        try:
            self._follow()
            for line in lines:
                self._write_line(line)
                written += 1
        except OSError as error:
            self._drop(len(lines) - written, error.strerror or str(error))
        else:
            self._drop(0, "")

    def _write_line(self, line: bytes) -> None:
        """Write a line, whole. Raises OSError."""
        data = memoryview(b"\n" + line if self._is_torn else line)
        while data:
            if not _has_room(self._descriptor, STUCK_SECONDS):
                raise BlockingIOError(0, f"nothing was read from it for {STUCK_SECONDS:g} s")
            data = data[os.write(self._descriptor, data) :]
            self._is_torn = True
        self._is_torn = False

    def _follow(self) -> None:
        """Open the file again if its path is another file now, or none. Raises OSError."""
        if self._path is None or _is_same(self._path, self._descriptor):
            return
        descriptor = _open(self._path)
        os.close(self._descriptor)
        self._descriptor, self._is_torn = descriptor, False

    def _drop(self, lines: int, why: str) -> None:
        """Count lines that are dropped, and say so, at most once a minute. why: empty if none is."""
        if lines:
            metrics.AUDIT_DROPPED.inc(lines)
        with self._lock:
            self._dropped, self._why = self._dropped + lines, why or self._why
            now = time.monotonic()
            # The audit log may be stderr, and so full that a warning would have to wait.
            if not self._dropped or now - self._warned_at < WARN_SECONDS or not _has_room(sys.stderr.fileno(), 0):
                return
            dropped, self._dropped, self._warned_at = self._dropped, 0, now
        where = self._path or "stderr"
        log.warning("the audit log %s could not be written, %d lines are dropped: %s", where, dropped, self._why)


def _written(line: dict[str, Any]) -> bytes:
    """Write a line: an object in ASCII."""
    moment = datetime.fromtimestamp(line["timestamp"], UTC).isoformat(timespec="milliseconds")
    return (json.dumps(line | {"timestamp": moment.replace("+00:00", "Z")}) + "\n").encode()


def _open(path: Path) -> int:
    """Open a file to append to it; a named pipe must have a reader. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, MODE)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _has_room(descriptor: int, seconds: float) -> bool:
    """Whether a short write to it would not wait, now or within so many seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))

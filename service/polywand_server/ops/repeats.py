"""Repeated log records: one in an interval passes, and says how many were left out."""

import logging
import threading
import time
import warnings
from dataclasses import dataclass

INTERVAL_SECONDS = 10.0
# Different messages that are remembered; the oldest is forgotten first.
MAX_MESSAGES = 64
# Clients can make these log as often as they like.
LOGGERS = ("asyncio", "uvicorn.error", "polywand_server.ops.http", "polywand_server.refused")


@dataclass(slots=True)
class _Message:
    passed_at: float
    left_out: int = 0


class Repeats(logging.Filter):
    """Lets the same message of the same logger pass once in `interval_seconds`.

    Messages are the same when the first line of their format string is, whatever the arguments.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        super().__init__()
        self._interval_seconds = interval_seconds
        self._messages: dict[tuple[str, str], _Message] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record passes; the number of those left out since the last one is added to it."""
        key, now = (record.name, str(record.msg).partition("\n")[0]), time.monotonic()
        with self._lock:
            message = self._messages.get(key)
            if message is not None and now - message.passed_at < self._interval_seconds:
                message.left_out += 1
                return False
            left_out = message.left_out if message is not None else 0
            self._messages.pop(key, None)
            self._messages[key] = _Message(now)
            if len(self._messages) > MAX_MESSAGES:
                del self._messages[next(iter(self._messages))]
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more of these since the last one)", ()
        return True


def quiet_libraries() -> None:
    """Bound what libraries log, and ignore Pillow's warnings about images: clients decide how much that is.

    Warnings are ignored, not only hidden: Python remembers the text of every warning that it has shown.
    """
    repeats = Repeats()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(repeats)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

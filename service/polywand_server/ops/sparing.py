"""Log records that come again and again: one passes, then one in a while that tells how many were left out."""

import logging
import threading
import time
import warnings
from dataclasses import dataclass

INTERVAL_SECONDS = 10.0
# Different messages that are told apart; the one that came first is forgotten first.
MAX_MESSAGES = 64
# They log, or may log, whatever a client does to them.
LOGGERS = ("asyncio", "uvicorn.error", "polywand_server.ops.http")


@dataclass(slots=True)
class _Message:
    passed_at: float
    left_out: int = 0


class Sparing(logging.Filter):
    """Let the same message of the same logger pass once in `interval_seconds`.

    The same: what is logged, before its arguments are put in; of several lines, the first.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        super().__init__()
        self._interval_seconds = interval_seconds
        self._messages: dict[tuple[str, str], _Message] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record passes; one that does may get a number at its end."""
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


def spare_libraries() -> None:
    """Bound what libraries log, and what Pillow says of an image: clients decide how much that is.

    Pillow's warnings are ignored, not only unseen: Python would remember every text that it has shown.
    """
    sparing = Sparing()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(sparing)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

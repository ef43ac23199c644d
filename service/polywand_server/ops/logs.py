"""The log on stderr: one record a line, as text or as JSON, with the id of the request that it belongs to."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal

from polywand_server.caller import current

Format = Literal["text", "json"]

log = logging.getLogger(__name__)


def configure(level: str, log_format: Format) -> None:
    """Log to stderr, and let nothing of Python's own reach it past the log: warnings, and uncaught exceptions.

    level: the lowest that is logged, as `logging` names it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_caller)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = _log_exception
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_exception_of_thread


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, logger, message, request id, trace id.

    Further lines of a message, and a traceback, are indented. Other control characters are escaped. So no text can
    pass for a record of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        first, *lines = _message(record).split("\n")
        head = f"{self.formatTime(record)} {record.levelname:<7} {record.name}: {first}"
        if request_id := getattr(record, "request_id", ""):
            trace_id = getattr(record, "trace_id", "")
            head += f" [request_id={request_id}{f' trace_id={trace_id}' if trace_id else ''}]"
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        return "\n  ".join(map(printable, (head, *lines)))


class JsonFormatter(logging.Formatter):
    """Lines for programs: an object each, in ASCII.

    timestamp: RFC 3339 in UTC. level, logger, message. In the course of a call: request_id, client, call (its number),
    trace_id if its client sent one, principal if it is known. With an exception: its traceback as `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "timestamp": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if getattr(record, "request_id", ""):
            fields |= {name: getattr(record, name) for name in ("request_id", "client")}
            fields["call"] = str(record.call)  # type: ignore[attr-defined]
        if getattr(record, "principal", ""):
            fields["principal"] = record.principal  # type: ignore[attr-defined]
        if getattr(record, "trace_id", ""):
            fields["trace_id"] = record.trace_id  # type: ignore[attr-defined]
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps(fields)


def printable(text: str) -> str:
    """Escape all characters that are not printable: newlines, terminals' control sequences, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _add_caller(record: logging.LogRecord) -> bool:
    caller = current()
    record.request_id, record.trace_id, record.client = caller.request_id, caller.trace_id, caller.client
    record.call, record.principal = caller.stream, caller.principal.name
    return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # of a library whose arguments do not fit; the logging module would print a traceback
        return f"{record.msg} {record.args}"


def _log_exception(*raised: Any) -> None:
    log.critical("uncaught exception", exc_info=raised)


def _log_exception_of_thread(hook: threading.ExceptHookArgs) -> None:
    name = hook.thread.name if hook.thread is not None else ""
    raised = (hook.exc_type, hook.exc_value, hook.exc_traceback)
    log.error("uncaught exception in thread '%s'", name, exc_info=raised)  # type: ignore[arg-type]


def _log_unraisable(hook: Any) -> None:
    what = hook.err_msg or "exception ignored in"
    log.error("%s %r", what, hook.object, exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback))

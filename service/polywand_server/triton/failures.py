"""Translates failed calls to Triton into the errors of the domain.

What gRPC and Triton 2.51 report:

| what happened                                | status           | text                                           |
|----------------------------------------------|------------------|------------------------------------------------|
| server dead, or died while it computed       | UNAVAILABLE      | "failed to connect to all addresses"           |
| model not in the repository, or never loaded | NOT_FOUND        | "unknown model: 'm' is not found"              |
| model unloaded, or failed to load            | NOT_FOUND        | "unknown model: 'm' has no available versions" |
| wrong name, type, shape, batch of an input   | INVALID_ARGUMENT | says which, and what was expected              |
| exception in a Python model                  | INTERNAL         | the exception, then "At:" and a trace          |
| process of a Python model dead, or without   | INTERNAL         | "Stub process 'm_0_0' is not healthy.",        |
| processor time for one to two seconds        |                  | "Failed to obtain the health mutex."           |
| the same of a model that another one calls   | INTERNAL         | the same; our models put "part 'm': " in front |
| a model that another one calls, not loaded   | INTERNAL         | "part 'm': ... Model 'm' is not ready."        |
| model cannot be loaded                       | INVALID_ARGUMENT | "load failed for model 'm': ..."               |
| load of a model that does not exist          | INTERNAL         | "failed to load 'm', failed to poll"           |
| load, unload without explicit model control  | UNAVAILABLE      | "explicit model load / unload is not allowed"  |
| the same, protected by a secret              | UNAVAILABLE      | "This protocol is restricted"                  |
| a repository that cannot be read             | INTERNAL         | "failed to open directory ..."                 |
| shared memory that Triton cannot open        | INTERNAL         | "Unable to open shared memory region: '/r'"    |
| a region registered before a restart         | NOT_FOUND        | "Unable to find shared memory region: 'r'"     |
| a region that a request still uses           | INTERNAL         | "Cannot unregister shared memory region 'r'"   |
| no room in /dev/shm for a tensor             | INTERNAL         | "Failed to increase the shared memory pool     |
|                                              |                  | size for key 'r' to 8 bytes. If you are ..."   |

Clients read these texts, so they must name no path, address, region or source file: a path is shortened to the file's
name, and a text that still names such things is only logged. The client then gets an id of the log line.
"""

import hashlib
import logging
import re
import secrets
import time

import grpc
import grpc.aio

from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError, Reason, UnavailableError

# How long the same text is not logged again, and of how many texts this is remembered.
REPEAT_S = 60.0
MAX_TEXTS = 256
MAX_PUBLIC_CHARACTERS = 400

_AWAY = ": Triton is away"
_REFUSED = ": Triton refuses ({status})"
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE: _AWAY,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _AWAY,
    # Triton cancelled the request. (Our own cancellation is an asyncio.CancelledError.)
    grpc.StatusCode.CANCELLED: _AWAY,
    grpc.StatusCode.NOT_FOUND: " is not loaded in Triton",
    grpc.StatusCode.UNAUTHENTICATED: _REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: _REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: _REFUSED,
}
_REQUEST_ID = re.compile(r"\[request id: [^\]]*\] ")  # Triton puts it before its texts; ours tell it themselves
_TRACE = "\n\nAt:\n"
_STUB_DIED = re.compile(
    r"^(?:part '(?P<part>[^']+)': )?"
    r"(?:Stub process (?:'(?P<process>.+)' )?is not healthy|Failed to obtain the health mutex)"
)
_NO_CONTROL = re.compile(r"explicit model load / unload is not allowed|This protocol is restricted")
_PART_AWAY = re.compile(r"^part '.+': .* is not ready")
_NO_REGION = re.compile(r"Unable to (find|open) shared memory region")
_IN_USE = re.compile(r"Cannot unregister shared memory region")
_NO_ROOM = re.compile(r"Failed to (increase the shared memory pool|create new mapped region)|No space left on device")
_PATH = re.compile(r"(?<![\w.~-])/(?:[^\s/'\"`:;,()\[\]<>]+/+)*([^\s/'\"`:;,()\[\]<>]+)")
_PRIVATE = re.compile(
    r"[/\\]|\b(?:unix|ipv[46]):|\b\d+\.\d+\.\d+\.\d+\b|0x[0-9a-f]{5,}|polywand-[0-9a-f]|shm|shared memory"
    r"|\.(?:cc|cpp|cxx|cu|h|hpp|so)\b|[0-9a-f]{8}-[0-9a-f]{4}-",
    re.IGNORECASE,
)

_log = logging.getLogger(__name__)


class RegionError(UnavailableError):
    """Triton does not know, or cannot open, a region of shared memory."""


class ControlRefusedError(ModelFailedError):
    """Triton does not let its clients, or this one, load and unload models."""


class ModelDiedError(UnavailableError):
    """A process of a Python model died; Triton fails every request to the model until it is loaded again.

    process: its name in Triton, if known.
    part: the model, if it is not the requested one but one that this calls.
    """

    reason = Reason.MODEL_NOT_READY

    def __init__(self, message: str, process: str | None, part: str | None) -> None:
        super().__init__(message)
        self.process = process
        self.part = part


class Failures:
    """Turns reports of one Triton into errors that clients may read, and logs what clients may not read.

    url: of Triton, for the log.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._key = secrets.token_bytes(16)  # so that a client cannot guess the text behind an id
        self._logged_at: dict[str, float] = {}

    def error(self, error: grpc.aio.AioRpcError, what: str) -> PolywandError:
        """Return the domain's error for a failed call.

        what: the subject of the error's text ("model 'grabcut'").
        """
        status, details = error.code(), _REQUEST_ID.sub("", error.details() or "")
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.deadline_error(what)
        if _NO_CONTROL.search(details):
            return ControlRefusedError(f"{what}: {self.public_text(details)}")
        known = self._error_from_text(details, what)
        if known is not None:
            return known
        if status in _UNAVAILABLE:
            self._log_once(details, status.name)
            is_unloaded = status is grpc.StatusCode.NOT_FOUND
            text = f"{what}{_UNAVAILABLE[status].format(status=status.name)}"
            return UnavailableError(text, reason=Reason.MODEL_NOT_READY if is_unloaded else None)
        return ModelFailedError(f"{what}: {self.public_text(details)}")

    def _error_from_text(self, details: str, what: str) -> PolywandError | None:
        """Return the error for a text that tells more than the status; None for other texts."""
        text = _without_trace(details)
        died = _STUB_DIED.match(text)
        if died:
            which = f"part '{died['part']}': Stub process died" if died["part"] else "its process died"
            return ModelDiedError(f"{what}: {which}", died["process"], died["part"])
        if _PART_AWAY.match(text):
            return UnavailableError(f"{what}: {self.public_text(details)}", reason=Reason.MODEL_NOT_READY)
        if _NO_REGION.search(text):
            return RegionError(f"{what}: Triton cannot read the memory that is shared with it")
        if _IN_USE.search(text):
            return ModelFailedError(f"{what}: a request still uses it")
        if _NO_ROOM.search(text):
            return UnavailableError(f"{what}: no space is left for Triton{self._log_once(details)}")
        return None

    def deadline_error(self, what: str) -> DeadlineError:
        """Return the error for a call that got no answer in time."""
        return DeadlineError(f"{what}: Triton did not answer in time")

    def public_text(self, details: str) -> str:
        """Return the part of Triton's text that a client may read; if that is not all, the whole text is logged."""
        text = _without_trace(details)
        shown = _PATH.sub(r"\1", text)
        if _PRIVATE.search(shown):
            return f"it failed{self._log_once(details)}"
        if len(shown) > MAX_PUBLIC_CHARACTERS:
            return f"{shown[:MAX_PUBLIC_CHARACTERS]}...{self._log_once(details)}"
        return shown + self._log_once(details) if shown != text else shown

    def _log_once(self, details: str, subject: str = "") -> str:
        """Log a text of Triton's unless it was logged a short time ago; return a reference to the log line.

        subject: identifies the text, if parts of it differ each time.
        """
        subject, now = subject or details, time.monotonic()
        number = hashlib.blake2b(subject.encode(), digest_size=4, key=self._key).hexdigest()
        if now - self._logged_at.get(number, -REPEAT_S) >= REPEAT_S:
            self._logged_at.pop(number, None)
            self._logged_at[number] = now
            if len(self._logged_at) > MAX_TEXTS:
                del self._logged_at[next(iter(self._logged_at))]
            _log.warning("Triton at %s, %s: %s", self._url, number, details)
        return f" (the service's log says more: {number})"


def _without_trace(details: str) -> str:
    """Drop the Python trace."""
    return details.partition(_TRACE)[0].strip()

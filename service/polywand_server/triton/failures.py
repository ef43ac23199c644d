"""What gRPC and Triton report when a call fails, as the errors of the domain.

Seen with Triton 2.51:

| what happened                                | status           | text                                           |
|----------------------------------------------|------------------|------------------------------------------------|
| server dead, or died while it computed       | UNAVAILABLE      | "failed to connect to all addresses"           |
| model not in the repository, or never loaded | NOT_FOUND        | "unknown model: 'm' is not found"              |
| model unloaded, or failed to load            | NOT_FOUND        | "unknown model: 'm' has no available versions" |
| wrong name, type, shape, batch of an input   | INVALID_ARGUMENT | says which, and what was expected              |
| exception in a Python model                  | INTERNAL         | the exception, then "At:" and a trace          |
| process of a Python model gone, or without   | INTERNAL         | "Stub process 'm_0_0' is not healthy.",        |
| the processor for one to two seconds         |                  | "Failed to obtain the health mutex."           |
| that of a model that another one calls       | INTERNAL         | the same; our models put "part 'm': " in front |
| a model that another one calls, not loaded   | INTERNAL         | "part 'm': ... Model 'm' is not ready."        |
| model cannot be loaded                       | INVALID_ARGUMENT | "load failed for model 'm': ..."               |
| load of a model that does not exist          | INTERNAL         | "failed to load 'm', failed to poll"           |
| load, unload without explicit model control  | UNAVAILABLE      | "explicit model load / unload is not allowed"  |
| the same, kept for those who know a secret   | UNAVAILABLE      | "This protocol is restricted"                  |
| a repository that cannot be read             | INTERNAL         | "failed to open directory ..."                 |
| shared memory that Triton cannot open        | INTERNAL         | "Unable to open shared memory region: '/r'"    |
| a region of Triton's former life             | NOT_FOUND        | "Unable to find shared memory region: 'r'"     |
| a region that a request still uses           | INTERNAL         | "Cannot unregister shared memory region 'r'"   |
| no room in /dev/shm for a tensor             | INTERNAL         | "Failed to increase the shared memory pool     |
|                                              |                  | size for key 'r' to 8 bytes. If you are ..."   |

These texts go to clients, so they name no path, address, region or source file: a path is shortened to the file's name,
and a text that still names such things goes to the log alone. The client gets an id that finds it there.
"""

import hashlib
import logging
import re
import secrets
import time

import grpc
import grpc.aio

from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError, UnavailableError

# The same text is not logged again for so long; as many texts are remembered for that.
REPEAT_S = 60.0
MAX_TEXTS = 256
MAX_PUBLIC_CHARACTERS = 400

_AWAY = ": Triton is away"
_REFUSED = ": Triton refuses ({status})"
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE: _AWAY,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _AWAY,
    # Never our own cancellation: that arrives as asyncio.CancelledError. So Triton gave up on the request.
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
    """Triton loads and unloads no models for its clients, or not for this one."""


class ModelDiedError(UnavailableError):
    """The process of a Python model is gone; Triton fails every request to it until it is loaded again.

    process: its name in Triton, where this told it.
    part: the model, if it is not the one that was asked but one that this calls.
    """

    def __init__(self, message: str, process: str | None, part: str | None) -> None:
        super().__init__(message)
        self.process = process
        self.part = part


class Failures:
    """Turns what one Triton reports into errors that clients may read, and logs what they may not.

    url: where Triton is looked for, for the log.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._key = secrets.token_bytes(16)  # without it, an id would let a client try out what stands behind it
        self._logged_at: dict[str, float] = {}

    def error(self, error: grpc.aio.AioRpcError, what: str) -> PolywandError:
        """Return the domain's error for a failed call.

        what: the thing that failed, as the start of a sentence ("model 'grabcut'").
        """
        status, details = error.code(), _REQUEST_ID.sub("", error.details() or "")
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.late(what)
        if _NO_CONTROL.search(details):
            return ControlRefusedError(f"{what}: {self.public(details)}")
        known = self._known(details, what)
        if known is not None:
            return known
        if status in _UNAVAILABLE:
            self._log_once(details, status.name)
            return UnavailableError(f"{what}{_UNAVAILABLE[status].format(status=status.name)}")
        return ModelFailedError(f"{what}: {self.public(details)}")

    def _known(self, details: str, what: str) -> PolywandError | None:
        """Return the error for a text that tells what the status does not."""
        said = _without_trace(details)
        died = _STUB_DIED.match(said)
        if died:
            which = f"part '{died['part']}': Stub process died" if died["part"] else "its process died"
            return ModelDiedError(f"{what}: {which}", died["process"], died["part"])
        if _PART_AWAY.match(said):
            return UnavailableError(f"{what}: {self.public(details)}")
        if _NO_REGION.search(said):
            return RegionError(f"{what}: Triton cannot read the memory that is shared with it")
        if _IN_USE.search(said):  # asked again until it is not
            return ModelFailedError(f"{what}: a request still uses it")
        if _NO_ROOM.search(said):
            return UnavailableError(f"{what}: no space is left for Triton{self._log_once(details)}")
        return None

    def late(self, what: str) -> DeadlineError:
        """Return the error for an answer that did not come."""
        return DeadlineError(f"{what}: Triton did not answer in time")

    def public(self, details: str) -> str:
        """Return what a client may read of a text of Triton's; all of it is in the log then, if that is more."""
        said = _without_trace(details)
        shown = _PATH.sub(r"\1", said)
        if _PRIVATE.search(shown):
            return f"it failed{self._log_once(details)}"
        if len(shown) > MAX_PUBLIC_CHARACTERS:
            return f"{shown[:MAX_PUBLIC_CHARACTERS]}...{self._log_once(details)}"
        return shown + self._log_once(details) if shown != said else shown

    def _log_once(self, details: str, subject: str = "") -> str:
        """Log a text of Triton's unless that has just been done; return the words that lead there.

        subject: what the text is about, if it differs from time to time in no way that matters.
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

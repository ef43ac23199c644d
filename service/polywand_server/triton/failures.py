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
| shared memory that Triton cannot open        | INTERNAL         | "Unable to open shared memory region: '/r'"    |
| a region of Triton's former life             | NOT_FOUND        | "Unable to find shared memory region: 'r'"     |
| a region that a request still uses           | INTERNAL         | "Cannot unregister shared memory region 'r'"   |
"""

import re

import grpc
import grpc.aio

from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError, UnavailableError

_AWAY = ": Triton at {url} is away"
_REFUSED = ": Triton at {url} refuses ({status})"
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE: _AWAY,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _AWAY,
    # Never our own cancellation: that arrives as asyncio.CancelledError. So Triton gave up on the request.
    grpc.StatusCode.CANCELLED: _AWAY,
    grpc.StatusCode.NOT_FOUND: " is not loaded in Triton at {url}",
    grpc.StatusCode.UNAUTHENTICATED: _REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: _REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: _REFUSED,
}
_TRACE = "\n\nAt:\n"
_STUB_DIED = re.compile(
    r"^(?:part '(?P<part>[^']+)': )?"
    r"(?:Stub process (?:'(?P<process>.+)' )?is not healthy|Failed to obtain the health mutex)"
)
_PART_AWAY = re.compile(r"^part '.+': .* is not ready")
_NO_REGION = re.compile(r"Unable to (find|open) shared memory region")


class RegionError(UnavailableError):
    """Triton does not know, or cannot open, a region of shared memory."""


class ModelDiedError(UnavailableError):
    """The process of a Python model is gone; Triton fails every request to it until it is loaded again.

    process: its name in Triton, where this told it.
    part: the model, if it is not the one that was asked but one that this calls.
    """

    def __init__(self, message: str, process: str | None, part: str | None) -> None:
        super().__init__(message)
        self.process = process
        self.part = part


def as_polywand_error(error: grpc.aio.AioRpcError, *, what: str, url: str) -> PolywandError:
    """Return the domain's error for a failed call.

    what: the thing that failed, as the start of a sentence ("model 'grabcut'"). url: where Triton was looked for.
    """
    status, details = error.code(), _summary(error.details() or "")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{what}: Triton at {url} did not answer in time")
    died = _STUB_DIED.match(details)
    if died:
        return ModelDiedError(f"{what}: its process died ({details})", died["process"], died["part"])
    if _PART_AWAY.match(details):
        return UnavailableError(f"{what}: {details}")
    if _NO_REGION.search(details):
        return RegionError(f"{what}: Triton at {url}: {details}")
    if status in _UNAVAILABLE:
        return UnavailableError(f"{what}{_UNAVAILABLE[status].format(url=url, status=status.name)}: {details}")
    return ModelFailedError(f"{what}: {details}")


def _summary(details: str) -> str:
    """Drop the Python trace: Triton logs it, and a client has no use for the server's paths."""
    return details.partition(_TRACE)[0].strip()

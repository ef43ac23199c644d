"""The exceptions of this package, with texts for people, and their conversion from gRPC errors.

PolywandError
    InvalidRequest (a ValueError)   the request is invalid, and stays so
        NotFound                    no such model or version
    Unauthenticated                 no valid token: a new one may be accepted
    PermissionDenied                this client may not do that
    Unavailable                     not now: the same request may succeed later
        QuotaExceeded               the server or a proxy is full, or limits how often one may call
        Draining                    the server is about to stop
    IncompletePrompt                the tool needs more points or a box
    Superseded, Closed              a newer image came; the session or the client was closed
    ServerError                     the server or the model failed
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeGuard

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from polywand_common.proxies import proxy_of
from polywand_contract.v1 import annotation_pb2 as pb


class Violation(NamedTuple):
    """A field of the request, by its path in the contract ("prompt.points[3].x"), and its error."""

    field: str
    description: str


class QuotaViolation(NamedTuple):
    """A limit that the server has reached: the resource ("images"), and the limit in words."""

    subject: str
    description: str


class PolywandError(Exception):
    """Base of all exceptions of this package.

    code: the canonical gRPC status. violations: the invalid fields of the request.
    reason: the server's reason for programs, such as "MODEL_NOT_FOUND" (docs/api.md lists them); empty if the server
    did not send one, and of an error that was found before anything was sent.
    request_id: the id of the call in the server's log; empty if the server did not send one.
    """

    reason: str = ""
    request_id: str = ""

    def __init__(self, message: str, code: grpc.StatusCode, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by text and attributes, so that an error from a process pool keeps both."""
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[PolywandError], arguments: tuple[Any, ...]) -> PolywandError:
    """Make an error without its `__init__`, whose arguments differ between classes; pickle then sets its attributes."""
    return kind.__new__(kind, *arguments)


class InvalidRequest(PolywandError, ValueError):  # noqa: N818 - reads better in an `except` without the suffix
    """The request is invalid, and stays so. Arguments out of their range are found before anything is sent."""


class NotFound(InvalidRequest):
    """The request names a model or a version that the server does not have."""


class ImageNotHeld(NotFound):
    """The server does not hold the image of this digest (any more).

    Clients and sessions send the image itself then. A caller does not see this.
    """


class Unauthenticated(PolywandError):  # noqa: N818
    """The server or a proxy does not know this client: its token is missing, wrong or expired."""


class PermissionDenied(PolywandError):  # noqa: N818
    """The server or a proxy knows this client, but does not permit it this request."""


class Unavailable(PolywandError):  # noqa: N818
    """The server, its Triton or the model is unavailable, or did not answer in time. The request may succeed later.

    retry_after_s: the seconds to wait before a retry, if the server sent them, else None.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        violations: Iterable[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code, violations)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Unavailable):
    """The server has reached a limit of work or memory, or a proxy a limit of calls. It may succeed later.

    quotas: the limits that it has reached; empty if it does not say. retry_after_s: as in `Unavailable`.
    """

    def __init__(
        self,
        message: str,
        retry_after_s: float | None = None,
        quotas: Iterable[QuotaViolation] = (),
        violations: Iterable[Violation] = (),
    ) -> None:
        super().__init__(message, grpc.StatusCode.RESOURCE_EXHAUSTED, violations, retry_after_s)
        self.quotas = tuple(quotas)


class ImageGivenUp(Unavailable):
    """The server removed the image of an idle stream, to make room for others.

    A session sends the image and the prompt again by itself. A caller sees this only if the timeout comes first.
    """


class Draining(Unavailable):
    """The server is about to stop. Open a new session: another replica answers.

    Sessions that reconnect do so by themselves.
    """


class ServerError(PolywandError):
    """The server or the model itself failed."""


class IncompletePrompt(PolywandError):  # noqa: N818
    """The tool needs more points or a box; the text says what, for people, and the attributes, for programs."""

    def __init__(
        self,
        message: str,
        missing_positive_points: int = 0,
        missing_negative_points: int = 0,
        missing_extreme_points: int = 0,
        missing_box: bool = False,
    ) -> None:
        super().__init__(message, grpc.StatusCode.FAILED_PRECONDITION)
        self.missing_positive_points = missing_positive_points
        self.missing_negative_points = missing_negative_points
        self.missing_extreme_points = missing_extreme_points
        self.missing_box = missing_box


class Superseded(PolywandError):  # noqa: N818
    """A newer image replaced the image of this request before it was answered, or its object was forgotten."""

    def __init__(self, message: str = "A newer image replaced the image of this request.") -> None:
        super().__init__(message, grpc.StatusCode.ABORTED)


class Closed(PolywandError):  # noqa: N818
    """The session or the client was closed."""

    def __init__(self, message: str = "This session is closed.") -> None:
        super().__init__(message, grpc.StatusCode.CANCELLED)


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_KINDS: dict[grpc.StatusCode, type[PolywandError]] = {  # of codes whose errors have no attributes of their own
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
_DOMAIN = "polywand"  # of an `ErrorInfo`
_REASON_KINDS: dict[str, type[PolywandError]] = {"IMAGE_GIVEN_UP": ImageGivenUp, "IMAGE_NOT_HELD": ImageNotHeld}
_UNAVAILABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_TEMPORARY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_CUTS = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
}
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")  # gRPC's text
_HINTS = {  # by words in gRPC's texts
    "handshake": "The TLS handshake failed: do both sides use TLS, and is the certificate trusted?",
    "parsing http": "That port does not speak gRPC, or requires TLS: is it the right port?",
    "resolving": "No host of this name is known here.",
    "resolution": "No host of this name is known here.",
}
_HTTP_TOO_LARGE = "status: 413"


def is_temporary(error: object) -> TypeGuard[Unavailable]:
    """Return whether a retry may succeed: the server is full, or Triton is unavailable."""
    return isinstance(error, Unavailable) and error.code in _TEMPORARY


def no_answer(target: str, timeout_s: float) -> Unavailable:
    """Make the error of a request that `target` did not answer within `timeout_s` seconds."""
    return Unavailable(f"{target} did not answer within {timeout_s:g} s.", grpc.StatusCode.DEADLINE_EXCEEDED)


def ended(target: str) -> Unavailable:
    """Make the error of a stream that `target` ended before all requests were answered."""
    return Unavailable(f"{target} ended the stream.", grpc.StatusCode.UNAVAILABLE)


def broken(error: PolywandError) -> Unavailable:
    """Make the error of a request whose stream has ended with `error`, when its time is over."""
    if isinstance(error, Unavailable):
        return error
    unavailable = Unavailable(f"The stream broke off: {error}", grpc.StatusCode.UNAVAILABLE)
    unavailable.request_id = error.request_id
    return unavailable


def client_closed() -> Closed:
    """Make the error of a call on a client that was closed before or during the call."""
    return Closed("This client is closed.")


def unexpected(what: str | None) -> ServerError:
    """Make the error of an answer that this version of the client does not know."""
    message = (
        f"The server's answer ({what or 'empty'}) is not known to this version of the client: a newer one may read it."
    )
    return ServerError(message, grpc.StatusCode.UNIMPLEMENTED)


def image_not_restored(refusal: PolywandError) -> PolywandError:
    """Make the error of a prompt whose image the server removed and then refused, with `refusal`."""
    message = f"The server does not have the image of this session, and refused it when sent again: {refusal}"
    retry_after_s = refusal.retry_after_s if isinstance(refusal, Unavailable) else None
    quotas = refusal.quotas if isinstance(refusal, QuotaExceeded) else ()
    error = _error(refusal.code, message, refusal.violations, retry_after_s, quotas)
    error.reason, error.request_id = refusal.reason, refusal.request_id
    return error


def from_status(status: status_pb2.Status) -> PolywandError:
    """Read the error in a `google.rpc.Status`, with its details."""
    violations: list[Violation] = []
    quotas: list[QuotaViolation] = []
    retry_after_s, request_id, reason = None, "", ""
    for detail in status.details:
        if detail.Unpack(bad_request := error_details_pb2.BadRequest()):
            violations += (Violation(v.field, v.description) for v in bad_request.field_violations)
        elif detail.Unpack(quota_failure := error_details_pb2.QuotaFailure()):
            quotas += (QuotaViolation(v.subject, v.description) for v in quota_failure.violations)
        elif detail.Unpack(retry_info := error_details_pb2.RetryInfo()):
            retry_after_s = retry_info.retry_delay.seconds + retry_info.retry_delay.nanos / 1e9
        elif detail.Unpack(info := error_details_pb2.ErrorInfo()) and info.domain == _DOMAIN:
            reason = info.reason
        elif detail.Unpack(request_info := error_details_pb2.RequestInfo()):
            request_id = request_info.request_id
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    if (kind := _REASON_KINDS.get(reason)) is not None:
        error = kind(status.message, code, violations)
    else:
        error = _error(code, status.message, violations, retry_after_s, quotas)
    error.reason, error.request_id = reason, request_id
    return error


def from_incomplete(incomplete: pb.Incomplete) -> IncompletePrompt:
    """Read the error in an `Incomplete` answer."""
    return IncompletePrompt(
        f"The tool needs {incomplete.message or 'more'}.",
        missing_positive_points=incomplete.missing_positive_points,
        missing_negative_points=incomplete.missing_negative_points,
        missing_extreme_points=incomplete.missing_extreme_points,
        missing_box=incomplete.missing_box,
    )


def from_draining(draining: pb.Draining) -> Draining:
    """Read the error in a `Draining` message."""
    return Draining(draining.message or "The server is draining: reconnect.", grpc.StatusCode.UNAVAILABLE)


def from_rpc(error: grpc.RpcError, target: str) -> PolywandError:
    """Read the error that ended a call to `target`, from grpc's synchronous or asyncio error."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(str(error), grpc.StatusCode.UNKNOWN)
    rich = _rich_status(error)
    if rich is not None:
        return from_status(rich)
    return _from_transport(error.code(), error.details() or "", target)


def is_final(error: grpc.RpcError, read: PolywandError) -> bool:
    """Return whether a stream that ended with an error would end so again. read: the error as `from_rpc` reads it.

    Proxies cut streams with several codes; what the server itself says is not a cut.
    """
    if is_temporary(read):
        return False
    return not isinstance(error, grpc.Call | grpc.aio.AioRpcError) or (
        isinstance(read, Closed) or error.code() not in _CUTS or _rich_status(error) is not None
    )


def never_arrived(error: grpc.RpcError) -> bool:
    """Return whether a call failed because no server could be reached."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError) or _rich_status(error) is not None:
        return False
    return _is_unreachable(error.details() or "")


def _from_transport(code: grpc.StatusCode, details: str, target: str) -> PolywandError:
    """Make the error of a status without Polywand's details, which gRPC or a proxy made."""
    if (problem := _too_large(target, details)) is not None:
        return InvalidRequest(problem, grpc.StatusCode.RESOURCE_EXHAUSTED)
    match code:
        case grpc.StatusCode.CANCELLED if "channel closed" in details.lower():
            return client_closed()
        # CANCELLED: by a proxy, or by a server that has just stopped.
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.DEADLINE_EXCEEDED:
            is_late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            text = f"{target} did not answer in time." if is_late else _unavailable_text(target, details)
            return Unavailable(text, code if is_late else grpc.StatusCode.UNAVAILABLE)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"{target} answers, but it is not a Polywand server: {details}", code)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # a limit of a proxy
            return QuotaExceeded(details or f"{target} accepts no more calls at the moment.")
    return _error(code, details)


def _rich_status(error: grpc.Call | grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)  # type: ignore[arg-type]  # asyncio's error has the same methods
    except ValueError:  # a proxy changed the code or the text, so the details do not belong to them
        return None


def _unavailable_text(target: str, details: str) -> str:
    # Errors of a proxy look like those of the server.
    proxy = proxy_of(target)
    through = "" if proxy is None else f" through the proxy {proxy.url}, set by {proxy.variable}"
    if not _is_unreachable(details) and (proxy is None or "proxy" not in details.lower()):
        return f"The connection to the server at {target} was lost: {details}"
    if proxy is not None:
        hint = "To bypass it, add the host to no_proxy."
    else:
        hint = next((hint for words, hint in _HINTS.items() if words in details.lower()), "Is it running? (make serve)")
    return f"No Polywand server answers at {target}{through}. {hint}"


def _too_large(target: str, details: str) -> str | None:
    """Return the error text if a message was too large for gRPC or a proxy, else None."""
    if (sizes := _TOO_LARGE.search(details)) is not None:
        size, limit = map(int, sizes.groups())
        return f"A message of {size:,} bytes is too large: {target} accepts at most {limit:,} bytes."
    if _HTTP_TOO_LARGE in details or "larger than max" in details:
        return f"The message is too large for {target} or a proxy: {details}"
    return None


def _is_unreachable(details: str) -> bool:
    # gRPC's own texts; all others are from the server or a proxy.
    return any(words in details.lower() for words in ("failed to connect", "resolution", "errors resolving"))


def _error(
    code: grpc.StatusCode,
    message: str,
    violations: Iterable[Violation] = (),
    retry_after_s: float | None = None,
    quotas: Iterable[QuotaViolation] = (),
) -> PolywandError:
    message = message or f"The server answered {code.name} without a text."
    violations, quotas = tuple(violations), tuple(quotas)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if violations and not quotas:  # the request itself exceeds a limit
            return InvalidRequest(message, code, violations)
        return QuotaExceeded(message, retry_after_s, quotas, violations)
    if code in _UNAVAILABLE:
        return Unavailable(message, code, violations, retry_after_s)
    return _KINDS.get(code, ServerError)(message, code, violations)

"""What can go wrong, as few exceptions whose texts are sentences for people, and where they come from in gRPC."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeGuard

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from polywand_common.proxies import proxy_of
from polywand_contract.v1 import annotation_pb2 as pb


class Violation(NamedTuple):
    """A field of the request, by its path in the contract ("prompt.points[3].x"), and what is wrong with it."""

    field: str
    description: str


class QuotaViolation(NamedTuple):
    """A limit that the server has reached: what is full ("images"), and the limit in words."""

    subject: str
    description: str


class PolywandError(Exception):
    """Base of everything that this package raises.

    code: the canonical gRPC status. violations: which fields of the request were at fault.
    request_id: with which the server's log tells of the call; empty where the server did not say.
    """

    request_id: str = ""

    def __init__(self, message: str, code: grpc.StatusCode, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by text and attributes: an error made in a pool's process reaches its parent whole."""
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[PolywandError], arguments: tuple[Any, ...]) -> PolywandError:
    """Make an error without its `__init__`, whose arguments differ from kind to kind; its attributes follow."""
    return kind.__new__(kind, *arguments)


class InvalidRequest(PolywandError, ValueError):  # noqa: N818 - reads better in an `except` without the suffix
    """The request is wrong, and the same request will stay wrong. An argument out of its range is found unsent."""


class NotFound(InvalidRequest):
    """The request names a model or a version that the server does not have."""


class Unauthenticated(InvalidRequest):
    """The server, or what stands before it, does not know this client, or does not permit it this request."""


class Unavailable(PolywandError):  # noqa: N818
    """The server, its Triton or the model is away or did not answer in time. The same request may succeed later.

    retry_after_s: how long the server asked to wait before that, in seconds; None when it did not say.
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
    """The server is full: it does as much, or holds as many images, as it may. The same request may succeed later.

    quotas: which limits it has reached; empty when it did not say. retry_after_s: as in `Unavailable`.
    """

    def __init__(
        self,
        message: str,
        retry_after_s: float,
        quotas: Iterable[QuotaViolation] = (),
        violations: Iterable[Violation] = (),
    ) -> None:
        super().__init__(message, grpc.StatusCode.RESOURCE_EXHAUSTED, violations, retry_after_s)
        self.quotas = tuple(quotas)


class ImageGivenUp(Unavailable):
    """The server gave up the image of an idle stream, because others needed the room.

    A session sends the image again by itself, and the prompt after it. A caller sees this only when the time of the
    prompt is over by then.
    """


class Draining(Unavailable):
    """The server is going away in order. Open a new session: another replica answers."""


class ServerError(PolywandError):
    """The server or the model itself failed."""


class IncompletePrompt(PolywandError):  # noqa: N818
    """The tool needs more before it can answer; the text says what, for people, and the attributes for programs."""

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
    """A newer image replaced the one that this request was about, before it was answered."""

    def __init__(self) -> None:
        super().__init__("A newer image replaced the one that this was about.", grpc.StatusCode.ABORTED)


class Closed(PolywandError):  # noqa: N818
    """The session, or the client, was closed by its owner."""

    def __init__(self, message: str = "This session is closed.") -> None:
        super().__init__(message, grpc.StatusCode.CANCELLED)


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
_KINDS: dict[grpc.StatusCode, type[InvalidRequest]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
}
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")  # the transport's own words
_HINTS = {  # by words of the transport's own
    "handshake": "TLS fails there: do both ends speak it, and is the certificate trusted?",
    "parsing http": "What is there speaks no gRPC, or wants TLS: is it the right port?",
    "resolving": "No host of this name is known here.",
    "resolution": "No host of this name is known here.",
}
_HTTP_TOO_LARGE = "status: 413"
_IMAGE_GIVEN_UP = ("polywand", "IMAGE_GIVEN_UP")  # domain and reason of an `ErrorInfo`


def is_passing(error: object) -> TypeGuard[Unavailable]:
    """Whether the same request, sent again after a rest, may succeed: the server is full, or Triton is away."""
    return isinstance(error, Unavailable) and error.code in _PASSING


def no_answer(target: str, timeout_s: float) -> Unavailable:
    """The error of a request that `target` left without an answer for `timeout_s` seconds."""
    return Unavailable(f"{target} did not answer within {timeout_s:g} s.", grpc.StatusCode.DEADLINE_EXCEEDED)


def ended(target: str) -> Unavailable:
    """The error of a stream that `target` ended although something was still to be answered."""
    return Unavailable(f"{target} ended the stream.", grpc.StatusCode.UNAVAILABLE)


def client_closed() -> Closed:
    """The error of a call on a client that was closed, or whose client is closed meanwhile."""
    return Closed("This client is closed.")


def unexpected(what: str | None) -> ServerError:
    """The error of an answer that this version of the client does not know."""
    message = f"The server's answer ({what or 'empty'}) is not known here: a newer client may read it."
    return ServerError(message, grpc.StatusCode.UNIMPLEMENTED)


def image_not_restored(refusal: PolywandError) -> PolywandError:
    """The error of a prompt whose image the server gave up and then refused to take again, with `refusal`."""
    message = f"The server gave up the image of this stream and did not take it again: {refusal}"
    retry_after_s = refusal.retry_after_s if isinstance(refusal, Unavailable) else None
    quotas = refusal.quotas if isinstance(refusal, QuotaExceeded) else ()
    error = _error(refusal.code, message, refusal.violations, retry_after_s, quotas)
    error.request_id = refusal.request_id
    return error


def from_status(status: status_pb2.Status) -> PolywandError:
    """The error that a `google.rpc.Status` tells of, with what its details say."""
    violations: list[Violation] = []
    quotas: list[QuotaViolation] = []
    retry_after_s, request_id, is_given_up = None, "", False
    for detail in status.details:
        if detail.Unpack(bad_request := error_details_pb2.BadRequest()):
            violations += (Violation(v.field, v.description) for v in bad_request.field_violations)
        elif detail.Unpack(quota_failure := error_details_pb2.QuotaFailure()):
            quotas += (QuotaViolation(v.subject, v.description) for v in quota_failure.violations)
        elif detail.Unpack(retry_info := error_details_pb2.RetryInfo()):
            retry_after_s = retry_info.retry_delay.seconds + retry_info.retry_delay.nanos / 1e9
        elif detail.Unpack(info := error_details_pb2.ErrorInfo()) and (info.domain, info.reason) == _IMAGE_GIVEN_UP:
            is_given_up = True
        elif detail.Unpack(request_info := error_details_pb2.RequestInfo()):
            request_id = request_info.request_id
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    error = _error(code, status.message, violations, retry_after_s, quotas)
    if is_given_up:
        error = ImageGivenUp(status.message, grpc.StatusCode.FAILED_PRECONDITION)
    error.request_id = request_id
    return error


def from_incomplete(incomplete: pb.Incomplete) -> IncompletePrompt:
    """The error that an `Incomplete` answer tells of."""
    return IncompletePrompt(
        f"The tool needs {incomplete.message or 'more'}.",
        missing_positive_points=incomplete.missing_positive_points,
        missing_negative_points=incomplete.missing_negative_points,
        missing_extreme_points=incomplete.missing_extreme_points,
        missing_box=incomplete.missing_box,
    )


def from_draining(draining: pb.Draining) -> Draining:
    """The error that a `Draining` message tells of."""
    return Draining(draining.message or "The server is draining: connect anew.", grpc.StatusCode.UNAVAILABLE)


def from_rpc(error: grpc.RpcError, target: str) -> PolywandError:
    """The error that ended a call to `target`, of grpc's synchronous or asynchronous kind."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(str(error), grpc.StatusCode.UNKNOWN)
    rich = _rich_status(error)
    if rich is not None:
        return from_status(rich)
    return _from_transport(error.code(), error.details() or "", target)


def never_arrived(error: grpc.RpcError) -> bool:
    """Whether a call failed because no server was there to take it."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError) or _rich_status(error) is not None:
        return False
    return _is_unreached(error.details() or "")


def _from_transport(code: grpc.StatusCode, details: str, target: str) -> PolywandError:
    """The error of a status without details of Polywand's: the transport's, or that of what stands in between."""
    if (problem := _too_large(target, details)) is not None:
        return InvalidRequest(problem, grpc.StatusCode.RESOURCE_EXHAUSTED)
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            is_late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            return Unavailable(f"{target} did not answer in time." if is_late else _away(target, details), code)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"{target} answers, but not as a Polywand server: {details}", code)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # a limit of calls, of a proxy before the server
            return QuotaExceeded(details or f"{target} takes no more calls for now.", 0.0)
        case grpc.StatusCode.CANCELLED if "channel closed" in details.lower():
            return client_closed()
    return _error(code, details)


def _rich_status(error: grpc.Call | grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)  # type: ignore[arg-type]  # asyncio's error reads the same
    except ValueError:  # something in between changed the code or the text, so the details are not theirs
        return None


def _away(target: str, details: str) -> str:
    # With a proxy in between, its refusals and its absence look like the server's.
    proxy = proxy_of(target)
    through = "" if proxy is None else f" through the proxy {proxy.url}, which {proxy.variable} names"
    if not _is_unreached(details) and (proxy is None or "proxy" not in details.lower()):
        return f"The server at {target} went away: {details}"
    if proxy is not None:
        hint = "Hosts named in no_proxy are reached without it."
    else:
        hint = next((hint for words, hint in _HINTS.items() if words in details.lower()), "Is it running? (make serve)")
    return f"No Polywand server answers at {target}{through}. {hint}"


def _too_large(target: str, details: str) -> str | None:
    """What the transport says of a message's size, in a sentence; None when it says something else."""
    if (sizes := _TOO_LARGE.search(details)) is not None:
        size, limit = map(int, sizes.groups())
        return f"A message of {size:,} bytes is too large: {target} takes at most {limit:,} bytes in one."
    if _HTTP_TOO_LARGE in details or "larger than max" in details:
        return f"The message is too large for {target}, or for a proxy before it: {details}"
    return None


def _is_unreached(details: str) -> bool:
    # The transport's own texts; everything else was said by the server or by something in between.
    return any(words in details.lower() for words in ("failed to connect", "resolution", "errors resolving"))


def _error(
    code: grpc.StatusCode,
    message: str,
    violations: Iterable[Violation] = (),
    retry_after_s: float | None = None,
    quotas: Iterable[QuotaViolation] = (),
) -> PolywandError:
    message = message or f"The server answered {code.name} without a word."
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_s is not None:  # without, the request is too large
        return QuotaExceeded(message, retry_after_s, quotas, violations)
    if code in _AWAY:
        return Unavailable(message, code, violations, retry_after_s)
    if code in _CALLERS_FAULT:
        return _KINDS.get(code, InvalidRequest)(message, code, violations)
    return ServerError(message, code, violations)

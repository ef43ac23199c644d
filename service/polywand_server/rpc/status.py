"""Errors as canonical gRPC statuses: one table, for unary calls and inside streams."""

from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from polywand_server import errors
from polywand_server.caller import Caller, current
from polywand_server.errors import Reason

_CODES: tuple[tuple[type[errors.PolywandError], grpc.StatusCode], ...] = (
    (errors.QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.WrongStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.MethodNotFoundError, grpc.StatusCode.UNIMPLEMENTED),
)
# The types of a google.rpc.ResourceInfo.
_RESOURCE_TYPES = {
    Reason.MODEL_NOT_FOUND: "model",
    Reason.VERSION_NOT_FOUND: "version",
    Reason.IMAGE_NOT_HELD: "image",
    Reason.SERVICE_NOT_FOUND: "service",
}

# Metadata keys, of requests and of trailers.
REQUEST_ID_KEY = "x-request-id"
TRACEPARENT_KEY = "traceparent"
# The domain of a google.rpc.ErrorInfo.
ERROR_DOMAIN = "polywand"
# Of an error's text, and of a name. A call's trailers hold a text three times, and clients accept 8 kB of trailers.
MAX_TEXT_BYTES = 1000
MAX_NAME_BYTES = 256


def undecodable() -> errors.InvalidInputError:
    """Return the error for bytes that cannot be parsed."""
    text = "these bytes are not a message of the contract"
    return errors.InvalidInputError("message", text, reason=Reason.MALFORMED_MESSAGE)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: errors.PolywandError) -> NoReturn:
    """End a call with an error. grpc.aio has no abort_with_status; this is what it would do."""
    current().usage.reason = error.reason.name
    details = ("grpc-status-details-bin", to_status(error).SerializeToString())
    await context.abort(code_of(error), _short(str(error)), (*trailers(current()), details))


def trailers(caller: Caller) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of a call: its request id, and the client's trace."""
    trace = ((TRACEPARENT_KEY, caller.traceparent),) if caller.traceparent else ()
    return ((REQUEST_ID_KEY, caller.request_id), *trace)


def code_of(error: errors.PolywandError) -> grpc.StatusCode:
    """Return the canonical code of an error; INTERNAL where the table has none."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: errors.PolywandError) -> status_pb2.Status:
    """Convert an error to a google.rpc.Status.

    Its details, in this order: the field of invalid input (google.rpc.BadRequest); what does not exist
    (google.rpc.ResourceInfo); what is full (google.rpc.QuotaFailure); when to retry (google.rpc.RetryInfo); the reason
    (google.rpc.ErrorInfo), always; in a call, its request id (google.rpc.RequestInfo).
    """
    status = status_pb2.Status(code=code_of(error).value[0], message=_short(str(error)))
    status.details.extend(map(_packed, _details(error)))
    return status


def _details(error: errors.PolywandError) -> Iterator[Message]:
    if isinstance(error, errors.InvalidInputError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_short(error.description)
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, errors.NotFoundError):
        yield error_details_pb2.ResourceInfo(
            resource_type=_RESOURCE_TYPES[error.reason], resource_name=_short(error.resource, MAX_NAME_BYTES)
        )
    if isinstance(error, errors.QuotaError):
        quota = error_details_pb2.QuotaFailure.Violation(subject=error.subject, description=_short(str(error)))
        yield error_details_pb2.QuotaFailure(violations=[quota])
    if isinstance(error, errors.UnavailableError | errors.QuotaError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_seconds * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    metadata = {key: _short(value, MAX_NAME_BYTES) for key, value in error.metadata.items()}
    yield error_details_pb2.ErrorInfo(reason=error.reason.name, domain=ERROR_DOMAIN, metadata=metadata)
    if current().request_id:
        yield error_details_pb2.RequestInfo(request_id=current().request_id)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _short(text: str, most: int = MAX_TEXT_BYTES) -> str:
    """Return a text of at most so many bytes."""
    encoded = text.encode()
    if len(encoded) <= most:
        return text
    return encoded[: most - 3].decode(errors="ignore") + "..."

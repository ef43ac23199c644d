"""Errors as canonical gRPC statuses: one table, used for unary calls and inside streams alike."""

from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from polywand_server import errors

_CODES: tuple[tuple[type[errors.PolywandError], grpc.StatusCode], ...] = (
    (errors.QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.WrongStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
)


# Reasons that programs read (google.rpc.ErrorInfo), and whose they are.
ERROR_DOMAIN = "polywand"
IMAGE_GIVEN_UP = "IMAGE_GIVEN_UP"
# Of an error's text, which stands in a call's headers up to three times; clients take 8 kB of them.
MAX_TEXT_BYTES = 1200
# Of bytes that cannot be parsed.
UNDECODABLE = "these bytes are no message of the contract"


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: errors.PolywandError) -> NoReturn:
    """End a call with an error. grpc.aio has no abort_with_status; this is what it would do."""
    details = (("grpc-status-details-bin", to_status(error).SerializeToString()),)
    await context.abort(code_of(error), _short(str(error)), details)


def code_of(error: errors.PolywandError) -> grpc.StatusCode:
    """Choose the canonical code; what has no other is INTERNAL."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: errors.PolywandError) -> status_pb2.Status:
    """Make a google.rpc.Status.

    For a fault of the input its details name the field (google.rpc.BadRequest); for what may succeed later they say
    when (google.rpc.RetryInfo), and what is full (google.rpc.QuotaFailure) if that is why. An image that a stream has
    to send again has the reason IMAGE_GIVEN_UP (google.rpc.ErrorInfo).
    """
    status = status_pb2.Status(code=code_of(error).value[0], message=_short(str(error)))
    if isinstance(error, errors.InvalidInputError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_short(error.description)
        )
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    if isinstance(error, errors.ImageGivenUpError):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=IMAGE_GIVEN_UP, domain=ERROR_DOMAIN))
        status.details.append(detail)
    if isinstance(error, errors.QuotaError):
        quota = error_details_pb2.QuotaFailure.Violation(subject=error.subject, description=_short(str(error)))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.QuotaFailure(violations=[quota]))
        status.details.append(detail)
    if isinstance(error, errors.UnavailableError | errors.QuotaError):
        detail = any_pb2.Any()
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_seconds * 1000))
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(detail)
    return status


def _short(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."

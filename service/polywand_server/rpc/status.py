"""Errors as canonical gRPC statuses: one table, for unary calls and inside streams."""

from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from polywand_server import errors
from polywand_server.caller import current

_CODES: tuple[tuple[type[errors.PolywandError], grpc.StatusCode], ...] = (
    (errors.QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.WrongStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
)

# The metadata key of a call's request id, of requests and of trailers.
REQUEST_ID_KEY = "x-request-id"
# Domain and reason of a google.rpc.ErrorInfo, which programs read.
ERROR_DOMAIN = "polywand"
IMAGE_GIVEN_UP = "IMAGE_GIVEN_UP"
# Of an error's text. A call's trailers hold it up to three times, and clients accept 8 kB of trailers.
MAX_TEXT_BYTES = 1200
# The text for bytes that cannot be parsed.
UNDECODABLE = "these bytes are not a message of the contract"


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: errors.PolywandError) -> NoReturn:
    """End a call with an error. grpc.aio has no abort_with_status; this is what it would do."""
    trailers = (
        (REQUEST_ID_KEY, current().request_id),
        ("grpc-status-details-bin", to_status(error).SerializeToString()),
    )
    await context.abort(code_of(error), _short(str(error)), trailers)


def code_of(error: errors.PolywandError) -> grpc.StatusCode:
    """Return the canonical code of an error; INTERNAL where the table has none."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: errors.PolywandError) -> status_pb2.Status:
    """Convert an error to a google.rpc.Status.

    Its details, in this order: the field of invalid input (google.rpc.BadRequest); IMAGE_GIVEN_UP for an image that the
    stream has to send again (google.rpc.ErrorInfo); what is full (google.rpc.QuotaFailure); when to retry
    (google.rpc.RetryInfo); in a call, its request id (google.rpc.RequestInfo).
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
    if isinstance(error, errors.ImageGivenUpError):
        yield error_details_pb2.ErrorInfo(reason=IMAGE_GIVEN_UP, domain=ERROR_DOMAIN)
    if isinstance(error, errors.ImageNotHeldError):
        yield error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    if isinstance(error, errors.QuotaError):
        quota = error_details_pb2.QuotaFailure.Violation(subject=error.subject, description=_short(str(error)))
        yield error_details_pb2.QuotaFailure(violations=[quota])
    if isinstance(error, errors.UnavailableError | errors.QuotaError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_seconds * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if current().request_id:
        yield error_details_pb2.RequestInfo(request_id=current().request_id)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _short(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."

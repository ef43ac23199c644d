"""Errors of requests; `rpc.status` maps them to canonical gRPC codes."""

import logging
from collections.abc import Awaitable, Mapping
from copy import copy
from enum import Enum
from typing import Any, Self, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

# The text of an InternalError.
FAILED = "the service failed on this request; its log says why"

# How often the service checks whether Triton is back; a client that retries more often learns nothing new.
RETRY_SECONDS = 0.25


class Reason(Enum):
    """Why a request failed, for programs: the reason of its `google.rpc.ErrorInfo`. Reasons are only added."""

    INVALID_FIELD = "a field of the message is invalid"
    MALFORMED_MESSAGE = "the bytes are not a message of the contract"
    IMAGE_UNREADABLE = "the image's file is empty, damaged, or of a format that is not read"
    IMAGE_TOO_LARGE = "the image exceeds a limit of bytes, pixels, or memory of decoding"
    MESSAGE_TOO_LARGE = "the message has too many bytes beside its image, too many fields, or too many prompts"
    TOO_MANY_OBJECTS = "the image has the most objects already"
    LIMIT_EXCEEDED = "the answer, or the work for it, exceeds another limit"
    MODEL_NOT_FOUND = "there is no tool of this name"
    VERSION_NOT_FOUND = "the tool has no such version"
    IMAGE_NOT_HELD = "the server does not hold the image of this digest"
    SERVICE_NOT_FOUND = "the health check knows no service of this name"
    METHOD_NOT_FOUND = "the server has no such method"
    WRONG_MODEL_KIND = "the tool is of the other kind"
    NO_IMAGE = "a prompt came before an image"
    NOT_AUTHENTICATED = "the call has no token or certificate that this server accepts"
    NOT_PERMITTED = "the principal of the call may not do this"
    QUOTA_EXCEEDED = "the principal of the call has what its quota allows"
    IMAGE_GIVEN_UP = "the image of an idle stream made room for others"
    SERVER_FULL = "the server, or this client's share of it, is full"
    REPLIES_NOT_READ = "the client does not read the replies of its stream"
    TRITON_UNAVAILABLE = "Triton is away, or cannot take the request"
    MODEL_NOT_READY = "the tool is not ready, and will be by itself"
    MODEL_BROKEN = "the tool is not ready until it is repaired"
    SERVER_UNAVAILABLE = "a part of the server is started again, or the server is about to stop"
    TRITON_TIMEOUT = "Triton did not answer in time"
    PROMPT_TIMEOUT = "the prompt took longer than the server allows"
    SERVER_TIMEOUT = "the server was too busy to do it in time"
    MESSAGE_TIMEOUT = "the message of a call did not arrive in time"
    INFERENCE_FAILED = "the model failed on this request"
    INTERNAL = "the server failed on this request"


class PolywandError(Exception):
    """Base of all errors that clients receive. The text is a sentence for people.

    reason: for programs. metadata: what they may need to know beside it: the tool as "model", its "version", or the
    "limit" by its name in the contract's `ServerLimits`, the "quota" by its name in the principals file.
    """

    reason = Reason.INTERNAL

    def __init__(self, text: str, *, reason: Reason | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.reason = reason or self.reason
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle text and attributes, since the arguments of `__init__` differ between subclasses."""
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[PolywandError], arguments: tuple[Any, ...]) -> PolywandError:
    return kind.__new__(kind, *arguments)


class InvalidInputError(PolywandError):
    """The request is invalid, and will be when it is sent again.

    field: the path of the field in the request, as in the contract ("prompt.points[3].x").
    """

    reason = Reason.INVALID_FIELD

    def __init__(
        self,
        field: str,
        description: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{field}: {description}", reason=reason, metadata=metadata)
        self.field = field
        self.description = description

    def at(self, field: str) -> Self:
        """Return the same error of another field."""
        moved = copy(self)
        moved.field, moved.args = field, (f"{field}: {self.description}",)
        return moved


class TooLargeError(InvalidInputError):
    """The request exceeds a limit of this server, which the description names.

    limit: its name in the contract's `ServerLimits`; empty if it is not there.
    """

    reason = Reason.LIMIT_EXCEEDED

    def __init__(self, field: str, description: str, *, reason: Reason | None = None, limit: str = "") -> None:
        super().__init__(field, description, reason=reason, metadata={"limit": limit} if limit else {})


class NotFoundError(InvalidInputError):
    """The request names something that does not exist, by default a model.

    resource: its name: a tool's, "TOOL/VERSION", or an image's digest in hexadecimal digits.
    """

    reason = Reason.MODEL_NOT_FOUND

    def __init__(
        self,
        field: str,
        description: str,
        *,
        resource: str = "",
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(field, description, reason=reason, metadata=metadata)
        self.resource = resource


class ImageNotHeldError(NotFoundError):
    """Only the digest of an image came, and this server does not hold the image."""

    reason = Reason.IMAGE_NOT_HELD

    def __init__(self, field: str, digest: bytes) -> None:
        text = "this server does not hold the image (any more): send the image itself"
        super().__init__(field, text, resource=digest.hex())


class WrongStateError(InvalidInputError):
    """The request does not fit the state of its stream or its tool: by default, the tool is of the other kind."""

    reason = Reason.WRONG_MODEL_KIND


class ImageGivenUpError(WrongStateError):
    """The image of an idle stream was removed to make room for others; the client has to send it again."""

    reason = Reason.IMAGE_GIVEN_UP


class QuotaError(PolywandError):
    """This server, this client's share of it, or a quota of its principal is full; a retry may succeed later.

    subject: what is full, in the plural ("images"), or whose quota ("principal:NAME QUOTA"). retry_seconds: how long to
    wait before a retry.
    """

    reason = Reason.SERVER_FULL

    def __init__(
        self,
        subject: str,
        text: str,
        retry_seconds: float,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text, reason=reason, metadata=metadata)
        self.subject = subject
        self.retry_seconds = retry_seconds


class UnavailableError(PolywandError):
    """Triton or the model is unavailable; the same request may succeed later.

    retry_seconds: how long to wait before a retry.
    """

    reason = Reason.TRITON_UNAVAILABLE

    def __init__(
        self,
        text: str,
        retry_seconds: float = RETRY_SECONDS,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text, reason=reason, metadata=metadata)
        self.retry_seconds = retry_seconds


class DeadlineError(PolywandError):
    """Triton did not answer in time, or the request took longer than the server allows."""

    reason = Reason.TRITON_TIMEOUT


class ModelFailedError(PolywandError):
    """The model rejected its input or failed."""

    reason = Reason.INFERENCE_FAILED


class MethodNotFoundError(PolywandError):
    """The server has no such method."""

    reason = Reason.METHOD_NOT_FOUND


class InternalError(PolywandError):
    """Internal error; the log has the details."""


async def or_error(work: Awaitable[T]) -> T | PolywandError:
    """Await the work of a request, and return its error instead of raising it, so that only this request fails."""
    try:
        return await work
    except Exception as error:
        return for_client(error)


def for_client(error: Exception) -> PolywandError:
    """Return the error that a client gets; an unexpected one is logged. Call it while it is handled."""
    if isinstance(error, PolywandError):
        return copy(error)  # without the traceback, whose frames hold an image's bytes until the reply is read
    if isinstance(error, MemoryError):
        log.error("out of memory while handling a request")
        return QuotaError("memory", "this server is out of memory: try later, or another replica", 1.0)
    log.exception("unexpected error while handling a request")
    return InternalError(FAILED)


class UnauthenticatedError(PolywandError):
    """The call has no token or certificate that is accepted. The text never has the token."""

    reason = Reason.NOT_AUTHENTICATED


class ForbiddenError(PolywandError):
    """The principal is known, and may not do this."""

    reason = Reason.NOT_PERMITTED

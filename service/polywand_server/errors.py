"""Errors of requests; `rpc.status` maps them to canonical gRPC codes."""

import logging
from collections.abc import Awaitable
from copy import copy
from typing import Any, Self, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

# The text of an InternalError.
FAILED = "the service failed on this request; its log says why"

# How often the service checks whether Triton is back; a client that retries more often learns nothing new.
RETRY_SECONDS = 0.25


class PolywandError(Exception):
    """Base of all errors that clients receive. The text is a sentence for people."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle text and attributes, since the arguments of `__init__` differ between subclasses."""
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[PolywandError], arguments: tuple[Any, ...]) -> PolywandError:
    return kind.__new__(kind, *arguments)


class InvalidInputError(PolywandError):
    """The request is invalid, and will be when it is sent again.

    field: the path of the field in the request, as in the contract ("prompt.points[3].x").
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description

    def at(self, field: str) -> Self:
        """Return the same error of another field."""
        moved = copy(self)
        moved.field, moved.args = field, (f"{field}: {self.description}",)
        return moved


class TooLargeError(InvalidInputError):
    """The request exceeds a limit of this server, which the description names."""


class NotFoundError(InvalidInputError):
    """The request names a model or a version that does not exist."""


class WrongStateError(InvalidInputError):
    """The request does not fit the state of its stream or its tool: a prompt before an image, or for a detector."""


class QuotaError(PolywandError):
    """This server, or this client's share of it, is full; the same request may succeed later.

    subject: what is full, in the plural ("images"). retry_seconds: how long to wait before a retry.
    """

    def __init__(self, subject: str, text: str, retry_seconds: float) -> None:
        super().__init__(text)
        self.subject = subject
        self.retry_seconds = retry_seconds


class ImageGivenUpError(WrongStateError):
    """The image of an idle stream was removed to make room for others; the client has to send it again."""


class UnavailableError(PolywandError):
    """Triton or the model is unavailable; the same request may succeed later.

    retry_seconds: how long to wait before a retry.
    """

    def __init__(self, text: str, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class DeadlineError(PolywandError):
    """Triton did not answer in time, or the request took longer than the server allows."""


class ModelFailedError(PolywandError):
    """The model rejected its input or failed."""


class InternalError(PolywandError):
    """Internal error; the log has the details."""


async def or_error(work: Awaitable[T]) -> T | PolywandError:
    """Await the work of a request, and return its error instead of raising it, so that only this request fails."""
    try:
        return await work
    except PolywandError as error:
        return error
    except MemoryError:
        log.error("out of memory while handling a request")
        return QuotaError("memory", "this server is out of memory: try later, or another replica", 1.0)
    except Exception:
        log.exception("unexpected error while handling a request")
        return InternalError(FAILED)

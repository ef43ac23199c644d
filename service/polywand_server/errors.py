"""What can go wrong with a request, as the domain says it; `rpc.status` turns these into canonical gRPC codes."""

import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

# Of an InternalError.
FAILED = "the service failed on this request; its log says why"

# What is away is looked for this often here; asking more often than that finds out nothing new.
RETRY_SECONDS = 0.25


class PolywandError(Exception):
    """Base of everything that is answered to a client. The text is written for the person who reads it at night."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by text and attributes: the arguments of `__init__` differ from kind to kind."""
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[PolywandError], arguments: tuple[Any, ...]) -> PolywandError:
    return kind.__new__(kind, *arguments)


class InvalidInputError(PolywandError):
    """The request is wrong and will stay wrong.

    field: the path of the field in the request, as in the contract ("prompt.points[3].x").
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class TooLargeError(InvalidInputError):
    """The request is over a limit of this server, which the description names."""


class NotFoundError(InvalidInputError):
    """The request names a model or a version that does not exist."""


class WrongStateError(InvalidInputError):
    """The request does not fit now: a prompt before an image, a detector asked to interact."""


class QuotaError(PolywandError):
    """This server, or this client's share of it, is full: the same request may succeed later.

    subject: what is full, in the plural ("images"). retry_seconds: when to try again.
    """

    def __init__(self, subject: str, text: str, retry_seconds: float) -> None:
        super().__init__(text)
        self.subject = subject
        self.retry_seconds = retry_seconds


class ImageGivenUpError(WrongStateError):
    """The stream's image made room for others while nothing was asked of it; sent again, it is there again."""


class UnavailableError(PolywandError):
    """Triton or the model is away; the same request may succeed later: retry_seconds says when to try again."""

    def __init__(self, text: str, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class DeadlineError(PolywandError):
    """Triton did not answer in time, or the request took longer than one may."""


class ModelFailedError(PolywandError):
    """The model itself refused or failed."""


class InternalError(PolywandError):
    """A fault of ours; the details stand in the log."""


async def or_error(work: Awaitable[T]) -> T | PolywandError:
    """Await a request's work; what it raises is returned, so that it ends nothing but this request."""
    try:
        return await work
    except PolywandError as error:
        return error
    except MemoryError:
        log.error("no memory was left for a request")
        return QuotaError("memory", "this server has no memory left for this: try later, or another replica", 1.0)
    except Exception:
        log.exception("a request failed for a reason that nobody thought of")
        return InternalError(FAILED)

"""Answers of a stream: replies to results, and results to the futures that wait for them."""

from dataclasses import dataclass
from typing import Any, Protocol

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.results import Segmentation
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Update:
    """One answer to the prompts of one object.

    sequence: of the prompt that it answers, as `send` returned it.
    skipped: how many earlier prompts of the object it replaces, because it overtook them.
    result: the outline, or the error that `prompt` would have raised (`IncompletePrompt`, `InvalidRequest`...).
    """

    object_id: str
    sequence: int
    skipped: int
    result: Segmentation | PolywandError


class Waiter(Protocol):
    """The common methods of threads' and asyncio's futures; its result is a `Segmentation` or an `ImageInfo`."""

    def done(self) -> bool:
        """Return whether it has a result or was cancelled."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Set the answer."""
        ...

    def set_exception(self, exception: Any, /) -> None:
        """Set an error."""
        ...


def result_of(
    reply: pb.InteractResponse, skipped: int, image: pb.ImageInfo | None = None
) -> Segmentation | PolywandError:
    """Read a reply to a prompt. skipped: how many earlier prompts it replaces. image: the one that it is about."""
    image = image or pb.ImageInfo()
    try:
        match reply.WhichOneof("result"):
            case "segmentation":
                return wire.segmentation(reply.segmentation, reply.timing, skipped, image.width, image.height)
            case "incomplete":
                return errors.from_incomplete(reply.incomplete)
            case "error":
                return errors.from_status(reply.error)
            case other:
                return errors.unexpected(other)
    except PolywandError as error:
        return error


def error_of(reply: pb.InteractResponse) -> PolywandError:
    """Return the error of a reply to an image that is not an `ImageInfo`."""
    result = result_of(reply, 0)
    return result if isinstance(result, PolywandError) else errors.unexpected(reply.WhichOneof("result"))


def resolve(waiter: Waiter, answer: object) -> None:
    """Set the answer or error of a future that is not done yet."""
    if waiter.done():
        return
    if isinstance(answer, PolywandError):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)

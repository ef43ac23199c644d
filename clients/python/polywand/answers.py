"""Answers of a stream: what a reply says, and how it reaches what waits for it."""

from dataclasses import dataclass
from typing import Any, Protocol

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.results import Segmentation
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Update:
    """One answer to the prompts of one object.

    sequence: of the prompt that it reflects, as `send` returned it.
    skipped: how many earlier prompts of the object it stands in for, because it overtook them.
    result: the outline, or the error that `prompt` would have raised (`IncompletePrompt`, `InvalidRequest`...).
    """

    object_id: str
    sequence: int
    skipped: int
    result: Segmentation | PolywandError


class Waiter(Protocol):
    """What the futures of threads and of asyncio have in common; resolves to `Segmentation` or `ImageInfo`."""

    def done(self) -> bool:
        """Whether it has an answer or was cancelled."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Wake with an answer."""
        ...

    def set_exception(self, exception: Any, /) -> None:
        """Wake with an error."""
        ...


def result_of(reply: pb.InteractResponse, skipped: int) -> Segmentation | PolywandError:
    """What a reply to a prompt says. skipped: how many earlier prompts it stands in for."""
    try:
        match reply.WhichOneof("result"):
            case "segmentation":
                return wire.segmentation(reply.segmentation, reply.timing, skipped)
            case "incomplete":
                return errors.from_incomplete(reply.incomplete)
            case "error":
                return errors.from_status(reply.error)
            case other:
                return errors.unexpected(other)
    except PolywandError as error:
        return error


def error_of(reply: pb.InteractResponse) -> PolywandError:
    """What a reply that should be an image says instead."""
    result = result_of(reply, 0)
    return result if isinstance(result, PolywandError) else errors.unexpected(reply.WhichOneof("result"))


def wake(waiter: Waiter, answer: object) -> None:
    """Hand an answer to what waits for it, if it still does."""
    if waiter.done():
        return
    if isinstance(answer, PolywandError):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)

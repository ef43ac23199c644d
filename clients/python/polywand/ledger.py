"""Which requests of a stream are open, what of them is to be sent and when, and which answer settles which."""

import time
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import grpc

from polywand import errors, wire
from polywand.errors import PolywandError, Unavailable
from polywand.results import Segmentation
from polywand.v1 import annotation_pb2 as pb

# How long a request that met an absent Triton rests before it is sent again: doubled from one time to the next, up to
# the longest. What the server says instead counts, but never less than the first.
FIRST_REST_S = 0.05
LONGEST_REST_S = 0.5


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
        """Whether nobody waits any more."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Wake with an answer."""
        ...

    def set_exception(self, exception: Any, /) -> None:
        """Wake with an error."""
        ...


@dataclass(slots=True)
class _Open:
    """A request without an answer.

    object_id: None for an image.
    asked: the sequence that its caller knows; when it is sent again, it travels under a new one.
    deadline: when its time is over, in monotonic seconds.
    due: when it is to be sent, likewise; 0 is at once. rest_s: how long it rested last.
    refusal: what it met last, when it was put off.
    """

    object_id: str | None
    asked: int
    message: pb.InteractRequest
    waiter: Waiter | None
    deadline: float
    due: float = 0.0
    rest_s: float = 0.0
    refusal: Unavailable | None = None


class Ledger:
    """The open requests of one stream. It holds no lock: its owner lets one thread in at a time.

    Newest wins on this side too: of each object, and of images, at most one request waits to be sent. One that met an
    absent Triton (UNAVAILABLE) is not settled by that: it rests and is sent again, unless its time is over by then or
    something newer stands for it.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._open: dict[int, _Open] = {}  # by ascending sequence
        self._unsent: dict[str | None, int] = {}  # of each object, the sequence of what is to be sent
        self._end: PolywandError | None = None

    @property
    def ended(self) -> PolywandError | None:
        """What ended the stream; None while it lives."""
        return self._end

    def ask(self, message: pb.InteractRequest, waiter: Waiter | None, patience_s: float) -> int:
        """Note a request that is to be sent, and return its sequence.

        patience_s: for how long it may be sent again. Raises what ended the stream, when something has.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        self._sequence += 1
        object_id = None if message.HasField("image") else message.prompt.object_id
        self._open[self._sequence] = _Open(object_id, self._sequence, message, waiter, time.monotonic() + patience_s)
        self._unsent.pop(object_id, None)
        self._unsent[object_id] = self._sequence  # at the end: requests leave in the order of their sequence
        return self._sequence

    def pause_s(self) -> float | None:
        """Seconds until something is to be sent; None: not before something is asked or answered."""
        request = self._next()
        return None if request is None else max(0.0, request.due - time.monotonic())

    def take(self) -> pb.InteractRequest | None:
        """What is to be sent now: what is new, in the order in which it was asked, and only then what has rested."""
        request = self._next()
        if request is None or request.due > time.monotonic():
            return None
        sequence = self._unsent.pop(request.object_id)
        if request.rest_s:  # sent again under a new sequence, because they never decrease
            del self._open[sequence]
            self._sequence = sequence = self._sequence + 1
            self._open[sequence] = request
        request.message.sequence = sequence
        return request.message

    def answer(self, reply: pb.InteractResponse) -> Update | pb.ImageInfo | None:
        """Settle what a reply answers, and return it when it is about an object or the new image.

        A reply about an object settles all its requests up to the reply's; a new image settles everything before it.
        """
        if reply.WhichOneof("result") == "draining":
            self.end(errors.from_draining(reply.draining))
            return None
        request = self._open.get(reply.sequence)
        if request is None:  # a late answer about an image that is gone
            return None
        covered = [sequence for sequence in self._about(request.object_id) if sequence <= reply.sequence]
        if request.object_id is None:
            return self._answer_image(reply, covered)
        result = _result(reply, len(covered) - 1)
        settled = self._settle(covered, result)
        if reply.sequence not in settled:
            return None
        return Update(request.object_id, request.asked, len(settled) - 1, result)

    def refusal(self, waiter: Waiter) -> Unavailable | None:
        """Why somebody still waits, when the server has said so."""
        return next((request.refusal for request in self._open.values() if request.waiter is waiter), None)

    def end(self, error: PolywandError) -> None:
        """Fail whatever is open and whatever will be asked. Only the first end counts."""
        self._end = self._end or error
        while self._open:
            self._close(next(iter(self._open)), self._end)

    def _answer_image(self, reply: pb.InteractResponse, covered: list[int]) -> pb.ImageInfo | None:
        if not reply.HasField("image"):  # the last image stays, and so do the prompts about it
            self._settle(covered, _result(reply, 0))
            return None
        for sequence in [sequence for sequence in self._open if sequence < reply.sequence]:
            self._close(sequence, errors.Superseded())
        self._close(reply.sequence, reply.image)
        return reply.image

    def _settle(self, covered: list[int], answer: Segmentation | PolywandError) -> list[int]:
        """Close the requests that an answer settles, and return them: all that it covers, unless they can wait."""
        settled = self._put_off(covered, answer) if _is_passing(answer) else covered
        for sequence in settled:
            self._close(sequence, answer)
        return settled

    def _put_off(self, covered: list[int], error: Unavailable) -> list[int]:
        """Let requests wait until the last of them has rested, or for what is newer; return those that cannot."""
        for sequence in covered:
            self._open[sequence].refusal = error
        newest = self._open[covered[-1]]
        rest_s = _rest_s(error, newest.rest_s)
        until = time.monotonic() + rest_s
        impatient = [sequence for sequence in covered if self._open[sequence].deadline <= until]
        if covered[-1] not in impatient and covered[-1] == self._about(newest.object_id)[-1]:
            newest.due, newest.rest_s = until, rest_s
            self._unsent[newest.object_id] = covered[-1]
        return impatient

    def _next(self) -> _Open | None:
        """What is to be sent next, now or later."""
        unsent = [self._open[sequence] for sequence in self._unsent.values()]
        if self._about(None):  # what has rested is about the image before, and must not follow this one
            unsent = [request for request in unsent if request.object_id is None or not request.rest_s]
        return min(unsent, key=lambda request: request.due, default=None)

    def _about(self, object_id: str | None) -> list[int]:
        return [sequence for sequence, request in self._open.items() if request.object_id == object_id]

    def _close(self, sequence: int, answer: object) -> None:
        request = self._open.pop(sequence)
        if self._unsent.get(request.object_id) == sequence:
            del self._unsent[request.object_id]
        if request.waiter is not None:
            _wake(request.waiter, answer)


def _is_passing(result: object) -> TypeGuard[Unavailable]:
    return isinstance(result, Unavailable) and result.code is grpc.StatusCode.UNAVAILABLE


def _rest_s(error: Unavailable, last_s: float) -> float:
    told_s = error.retry_after_s
    return max(FIRST_REST_S, min(2 * last_s, LONGEST_REST_S) if told_s is None else told_s)


def _result(reply: pb.InteractResponse, skipped: int) -> Segmentation | PolywandError:
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


def _wake(waiter: Waiter, answer: object) -> None:
    if waiter.done():
        return
    if isinstance(answer, PolywandError):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)

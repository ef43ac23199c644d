"""The open requests of a stream: which to send and when, and which reply answers which."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from polywand import errors
from polywand.answers import Update, Waiter, error_of, resolve, result_of
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S, Backoff, Uniform, system_uniform
from polywand.errors import ImageGivenUp, IncompletePrompt, PolywandError, Unavailable
from polywand.results import Segmentation
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(slots=True)
class _OpenRequest:
    """A request without an answer.

    object_id: None for an image.
    caller_sequence: the sequence that its caller knows; a retry is sent under a new one.
    backoff: the delays of its retries, and its deadline.
    due: when to send it, in monotonic seconds; 0 is at once. sent: whether it was sent before.
    is_restore: whether it is the held image, which the ledger itself sends again.
    refusal: the last error, if it was postponed.
    """

    object_id: str | None
    caller_sequence: int
    message: pb.InteractRequest
    waiter: Waiter | None
    backoff: Backoff
    due: float = 0.0
    sent: bool = False
    is_restore: bool = False
    refusal: PolywandError | None = None


@dataclass(slots=True)
class _HeldImage:
    """The image that the server accepted last, kept in case the server removes it.

    sequence: under which it was accepted. info: what the server answered.
    is_removed: whether the server has removed it.
    backoff: of sending it again; None before the first time, and after an outline.
    """

    message: pb.InteractRequest
    sequence: int
    info: pb.ImageInfo
    is_removed: bool = False
    backoff: Backoff | None = None


class Ledger:
    """The open requests of one stream. Not thread-safe: its owner has the lock.

    Newest wins here too: of each object, and of images, at most one request waits to be sent. A full server
    (QuotaExceeded) or an unavailable Triton (UNAVAILABLE) does not close a request: it is sent again after a delay,
    unless its deadline comes first or a newer request replaces it.

    The server may remove the image of an idle stream. The ledger keeps the message of the last accepted image until
    a newer one is accepted or the stream ends, and after such an answer sends it again before the prompts.

    uniform: the random numbers of the backoff.
    """

    def __init__(self, uniform: Uniform | None = None) -> None:
        self._uniform = uniform or system_uniform()
        self._sequence = 0
        self._last_sent = 0
        self._open: dict[int, _OpenRequest] = {}  # by ascending sequence
        self._unsent: dict[str | None, int] = {}  # by object, the sequence of the request to send
        self._held: _HeldImage | None = None
        self._end: PolywandError | None = None

    @property
    def ended(self) -> PolywandError | None:
        """The error that ended the stream; None while it is open."""
        return self._end

    def add(self, message: pb.InteractRequest, waiter: Waiter | None, timeout_s: float) -> int:
        """Add a request to send, and return its sequence.

        timeout_s: for how long it may be sent again. Raises the error that ended the stream, if it has ended.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        deadline = time.monotonic() + timeout_s
        if message.HasField("prompt"):
            backoff = Backoff(deadline, FIRST_DELAY_S, self._uniform)
            return self._add(message.prompt.object_id, message, waiter, backoff).caller_sequence
        for sequence in self._open_for(None):
            if self._open[sequence].is_restore and self._unsent.get(None) == sequence:
                self._close(sequence, None)  # needed only if the newer image fails
        return self._add(None, message, waiter, Backoff(deadline, FIRST_IMAGE_DELAY_S, self._uniform)).caller_sequence

    def pause_s(self) -> float | None:
        """Return the seconds until a request is due; None: not before the next `add` or `answer`."""
        request = self._next()
        return None if request is None else max(0.0, request.due - time.monotonic())

    def pop(self) -> pb.InteractRequest | None:
        """Return the message to send now, or None: new requests first, in the order of `add`, then retries."""
        request = self._next()
        if request is None or request.due > time.monotonic():
            return None
        sequence = self._unsent.pop(request.object_id)
        if sequence <= self._last_sent:  # a retry: sequences must not decrease
            del self._open[sequence]
            self._sequence = sequence = self._sequence + 1
            self._open[sequence] = request
        self._last_sent = sequence
        request.sent = True
        request.message.sequence = sequence
        return request.message

    def answer(self, reply: pb.InteractResponse) -> list[Update] | pb.ImageInfo:
        """Close the requests that a reply answers, and return its updates of objects, or the new image.

        A reply about an object answers all its requests up to the reply's; a new image closes all requests before it.
        """
        if reply.WhichOneof("result") == "draining":
            self.end(errors.from_draining(reply.draining))
            return []
        request = self._open.get(reply.sequence)
        if request is None:  # a late answer about an earlier image
            return []
        if request.is_restore:
            return self._answer_restored(reply, request)
        covered = [sequence for sequence in self._open_for(request.object_id) if sequence <= reply.sequence]
        if request.object_id is None:
            return self._answer_image(reply, covered)
        result = result_of(reply, len(covered) - 1, None if self._held is None else self._held.info)
        settled = self._settle(covered, result)
        if reply.sequence not in settled:
            return []
        return [Update(request.object_id, request.caller_sequence, len(settled) - 1, result)]

    def refusal(self, waiter: Waiter) -> PolywandError | None:
        """Return the last error of a postponed request, or None."""
        return next((request.refusal for request in self._open.values() if request.waiter is waiter), None)

    def end(self, error: PolywandError) -> None:
        """Fail all open and all later requests. Only the first end counts."""
        self._end = self._end or error
        self._held = None
        while self._open:
            self._close(next(iter(self._open)), self._end)

    def _add(
        self, object_id: str | None, message: pb.InteractRequest, waiter: Waiter | None, backoff: Backoff
    ) -> _OpenRequest:
        self._sequence += 1
        request = self._open[self._sequence] = _OpenRequest(object_id, self._sequence, message, waiter, backoff)
        self._unsent.pop(object_id, None)
        self._unsent[object_id] = self._sequence  # at the end: requests are sent in the order of their sequence
        return request

    def _answer_image(self, reply: pb.InteractResponse, covered: list[int]) -> list[Update] | pb.ImageInfo:
        image = self._open[reply.sequence]
        if reply.HasField("image"):
            self._held = _HeldImage(image.message, reply.sequence, reply.image)
            self._close(reply.sequence, reply.image)
            for sequence in [
                sequence for sequence, request in self._open.items() if request.caller_sequence < image.caller_sequence
            ]:
                self._close(sequence, errors.Superseded())
            return reply.image
        # The last image stays, and so do its prompts.
        for sequence in [sequence for sequence in covered if self._open[sequence].is_restore]:
            covered.remove(sequence)
            self._close(sequence, None)
        self._settle(covered, error_of(reply))
        self._restore()
        return []

    def _answer_restored(self, reply: pb.InteractResponse, image: _OpenRequest) -> list[Update]:
        """After the reply to a restored image: send its prompts again, postpone them, or fail those that expired."""
        assert self._held is not None
        if reply.HasField("image"):
            self._close(reply.sequence, None)
            self._held.sequence, self._held.is_removed = reply.sequence, False
            for object_id, newest in self._prompts().items():
                self._unsent.setdefault(object_id, newest[-1])
            return []
        if self._open_for(None)[-1] != reply.sequence:  # a newer image is open
            self._close(reply.sequence, None)
            return []
        refusal = error_of(reply)
        error, until = errors.image_not_restored(refusal), math.inf
        if errors.is_temporary(refusal):
            image.backoff.deadline = max(self._deadlines(), default=0.0)
            until = time.monotonic() + image.backoff.next_s(refusal.retry_after_s)
        updates = self._fail_expired(error, until)
        if self._prompts():
            image.due = until
            self._unsent[None] = reply.sequence
        else:
            self._close(reply.sequence, None)
        return updates

    def _fail_expired(self, error: PolywandError, until: float) -> list[Update]:
        """Fail all prompts whose deadline is not after `until`, and note the error at the others."""
        updates = []
        for object_id, sequences in self._prompts().items():
            expired = self._expired(sequences, error, until)
            if sequences[-1] in expired:
                updates.append(Update(object_id, self._open[sequences[-1]].caller_sequence, len(expired) - 1, error))
            for sequence in expired:
                self._close(sequence, error)
        return updates

    def _settle(self, covered: list[int], answer: Segmentation | PolywandError) -> list[int]:
        """Close the requests that an answer covers, but for those that are sent again, and return them."""
        settled = covered
        if isinstance(answer, ImageGivenUp):
            settled = self._await_image(covered, answer)
        elif errors.is_temporary(answer):
            settled = self._postpone(covered, answer)
        elif self._held is not None and isinstance(answer, Segmentation | IncompletePrompt):
            self._held.backoff = None
        for sequence in settled:
            self._close(sequence, answer)
        return settled

    def _postpone(self, covered: list[int], error: Unavailable) -> list[int]:
        """Schedule the last of these requests to be sent again; return those that expire before."""
        newest = self._open[covered[-1]]
        until = time.monotonic() + newest.backoff.next_s(error.retry_after_s)
        expired = self._expired(covered, error, until)
        if covered[-1] not in expired and covered[-1] == self._open_for(newest.object_id)[-1]:
            newest.due = until
            self._unsent[newest.object_id] = covered[-1]
        return expired

    def _await_image(self, covered: list[int], error: ImageGivenUp) -> list[int]:
        """Let requests wait until the server has accepted the held image again; return those that cannot."""
        if self._held is None:
            return covered
        if covered[-1] < self._held.sequence:  # sent before the server accepted it again
            return []
        self._held.is_removed = True
        self._restore()
        return self._expired(covered, error, time.monotonic())

    def _restore(self) -> None:
        """Send the held image again if it was removed, prompts wait for it and no newer image is open."""
        held, deadline = self._held, max(self._deadlines(), default=0.0)
        if held is None or not held.is_removed or self._open_for(None) or deadline <= time.monotonic():
            return
        due = 0.0
        if held.backoff is None:
            held.backoff = Backoff(deadline, FIRST_IMAGE_DELAY_S, self._uniform)
        else:  # the last time gave no outline
            held.backoff.deadline = deadline
            due = time.monotonic() + held.backoff.next_s(None)
        image = self._add(None, held.message, None, held.backoff)
        image.due, image.is_restore = due, True

    def _expired(self, sequences: list[int], error: PolywandError, until: float) -> list[int]:
        """Return the requests whose deadline is not after `until`, and note the error at all."""
        for sequence in sequences:
            self._open[sequence].refusal = error
        return [sequence for sequence in sequences if self._open[sequence].backoff.deadline <= until]

    def _next(self) -> _OpenRequest | None:
        """Return the request to send next, now or later."""
        images = [self._open[sequence] for sequence in self._open_for(None)]
        unsent = (self._open[sequence] for sequence in self._unsent.values())
        free = [request for request in unsent if request.object_id is None or _may_be_sent(request, images)]
        return min(free, key=lambda request: request.due, default=None)

    def _open_for(self, object_id: str | None) -> list[int]:
        return [sequence for sequence, request in self._open.items() if request.object_id == object_id]

    def _prompts(self) -> dict[str, list[int]]:
        """Return the sequences of open prompts, by object."""
        prompts: dict[str, list[int]] = {}
        for sequence, request in self._open.items():
            if request.object_id is not None:
                prompts.setdefault(request.object_id, []).append(sequence)
        return prompts

    def _deadlines(self) -> list[float]:
        return [request.backoff.deadline for request in self._open.values() if request.object_id is not None]

    def _close(self, sequence: int, answer: object) -> None:
        request = self._open.pop(sequence)
        if self._unsent.get(request.object_id) == sequence:
            del self._unsent[request.object_id]
        if request.waiter is not None:
            resolve(request.waiter, answer)


def _may_be_sent(prompt: _OpenRequest, images: Iterable[_OpenRequest]) -> bool:
    """Return whether a prompt may be sent while images are open.

    It must not be sent after an image that is newer. If it is newer than an image, it waits for that image's answer.
    """
    return all(
        not prompt.sent and not image.sent and prompt.caller_sequence < image.caller_sequence for image in images
    )

"""Which requests of a stream are open, what of them is to be sent and when, and which answer settles which."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from polywand import errors
from polywand.answers import Update, Waiter, error_of, result_of, wake
from polywand.errors import ImageGivenUp, IncompletePrompt, PolywandError, Unavailable
from polywand.rests import FIRST_IMAGE_REST_S, FIRST_REST_S, Rests, Uniform, system_uniform
from polywand.results import Segmentation
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(slots=True)
class _Open:
    """A request without an answer.

    object_id: None for an image.
    asked: the sequence that its caller knows; when it is sent again, it travels under a new one.
    rests: how long it rests when it is refused for now, and when its time is over.
    due: when it is to be sent, in monotonic seconds; 0 is at once. sent: whether it has left once.
    restores: whether it is the held image, sent again without being asked for.
    refusal: what it met last, when it was put off.
    """

    object_id: str | None
    asked: int
    message: pb.InteractRequest
    waiter: Waiter | None
    rests: Rests
    due: float = 0.0
    sent: bool = False
    restores: bool = False
    refusal: PolywandError | None = None


@dataclass(slots=True)
class _Held:
    """The image that the server took last, kept for when the server gives it up.

    sequence: under which it was taken.
    given_up: whether the server has said that it no longer holds it.
    rests: of sending it again; None before the first time, and after an outline.
    """

    message: pb.InteractRequest
    sequence: int
    given_up: bool = False
    rests: Rests | None = None


class Ledger:
    """The open requests of one stream. It holds no lock: its owner lets one thread in at a time.

    Newest wins on this side too: of each object, and of images, at most one request waits to be sent. One that met a
    full server (QuotaExceeded) or an absent Triton (UNAVAILABLE) is not settled by that: it rests and is sent again,
    unless its time is over by then or something newer stands for it.

    The server may give up the image of an idle stream. The ledger keeps the message of the last image that was taken,
    until a newer one is taken or the stream ends, and on such an answer sends it again before the prompts.

    uniform: where the rests' chance comes from.
    """

    def __init__(self, uniform: Uniform | None = None) -> None:
        self._uniform = uniform or system_uniform()
        self._sequence = 0
        self._last_sent = 0
        self._open: dict[int, _Open] = {}  # by ascending sequence
        self._unsent: dict[str | None, int] = {}  # of each object, the sequence of what is to be sent
        self._held: _Held | None = None
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
        deadline = time.monotonic() + patience_s
        if message.HasField("prompt"):
            rests = Rests(deadline, FIRST_REST_S, self._uniform)
            return self._note(message.prompt.object_id, message, waiter, rests).asked
        for sequence in self._about(None):
            if self._open[sequence].restores and self._unsent.get(None) == sequence:
                self._close(sequence, None)  # of use only should the newer image fail
        return self._note(None, message, waiter, Rests(deadline, FIRST_IMAGE_REST_S, self._uniform)).asked

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
        if sequence <= self._last_sent:  # a new sequence, because they never decrease
            del self._open[sequence]
            self._sequence = sequence = self._sequence + 1
            self._open[sequence] = request
        self._last_sent = sequence
        request.sent = True
        request.message.sequence = sequence
        return request.message

    def answer(self, reply: pb.InteractResponse) -> list[Update] | pb.ImageInfo:
        """Settle what a reply answers, and return what it says about objects, or the new image.

        A reply about an object settles all its requests up to the reply's; a new image settles everything before it.
        """
        if reply.WhichOneof("result") == "draining":
            self.end(errors.from_draining(reply.draining))
            return []
        request = self._open.get(reply.sequence)
        if request is None:  # a late answer about an image that is gone
            return []
        if request.restores:
            return self._answer_restored(reply, request)
        covered = [sequence for sequence in self._about(request.object_id) if sequence <= reply.sequence]
        if request.object_id is None:
            return self._answer_image(reply, covered)
        result = result_of(reply, len(covered) - 1)
        settled = self._settle(covered, result)
        if reply.sequence not in settled:
            return []
        return [Update(request.object_id, request.asked, len(settled) - 1, result)]

    def refusal(self, waiter: Waiter) -> PolywandError | None:
        """Why a request is still without an answer, when the server has said so."""
        return next((request.refusal for request in self._open.values() if request.waiter is waiter), None)

    def end(self, error: PolywandError) -> None:
        """Fail whatever is open and whatever will be asked. Only the first end counts."""
        self._end = self._end or error
        self._held = None
        while self._open:
            self._close(next(iter(self._open)), self._end)

    def _note(self, object_id: str | None, message: pb.InteractRequest, waiter: Waiter | None, rests: Rests) -> _Open:
        self._sequence += 1
        request = self._open[self._sequence] = _Open(object_id, self._sequence, message, waiter, rests)
        self._unsent.pop(object_id, None)
        self._unsent[object_id] = self._sequence  # at the end: requests leave in the order of their sequence
        return request

    def _answer_image(self, reply: pb.InteractResponse, covered: list[int]) -> list[Update] | pb.ImageInfo:
        image = self._open[reply.sequence]
        if reply.HasField("image"):
            self._held = _Held(image.message, reply.sequence)
            self._close(reply.sequence, reply.image)
            for sequence in [sequence for sequence, request in self._open.items() if request.asked < image.asked]:
                self._close(sequence, errors.Superseded())
            return reply.image
        # The last image stays, and so do the prompts about it.
        for sequence in [sequence for sequence in covered if self._open[sequence].restores]:
            covered.remove(sequence)
            self._close(sequence, None)
        self._settle(covered, error_of(reply))
        self._restore()
        return []

    def _answer_restored(self, reply: pb.InteractResponse, image: _Open) -> list[Update]:
        """Send again what waits for the held image, or put that off, or fail what cannot wait."""
        assert self._held is not None
        if reply.HasField("image"):
            self._close(reply.sequence, None)
            self._held.sequence, self._held.given_up = reply.sequence, False
            for object_id, newest in self._prompts().items():
                self._unsent.setdefault(object_id, newest[-1])
            return []
        if self._about(None)[-1] != reply.sequence:  # a newer image is on its way
            self._close(reply.sequence, None)
            return []
        refusal = error_of(reply)
        error, until = errors.image_not_restored(refusal), math.inf
        if errors.is_passing(refusal):
            image.rests.deadline = max(self._deadlines(), default=0.0)
            until = time.monotonic() + image.rests.next_s(refusal.retry_after_s)
        updates = self._fail_impatient(error, until)
        if self._prompts():
            image.due = until
            self._unsent[None] = reply.sequence
        else:
            self._close(reply.sequence, None)
        return updates

    def _fail_impatient(self, error: PolywandError, until: float) -> list[Update]:
        """Fail all prompts whose time is over by `until`, and remember of the others what they met."""
        updates = []
        for object_id, sequences in self._prompts().items():
            impatient = self._impatient(sequences, error, until)
            if sequences[-1] in impatient:
                updates.append(Update(object_id, self._open[sequences[-1]].asked, len(impatient) - 1, error))
            for sequence in impatient:
                self._close(sequence, error)
        return updates

    def _settle(self, covered: list[int], answer: Segmentation | PolywandError) -> list[int]:
        """Close the requests that an answer settles, and return them: all that it covers, unless they can wait."""
        settled = covered
        if isinstance(answer, ImageGivenUp):
            settled = self._await_image(covered, answer)
        elif errors.is_passing(answer):
            settled = self._put_off(covered, answer)
        elif self._held is not None and isinstance(answer, Segmentation | IncompletePrompt):
            self._held.rests = None
        for sequence in settled:
            self._close(sequence, answer)
        return settled

    def _put_off(self, covered: list[int], error: Unavailable) -> list[int]:
        """Let requests wait until the last of them has rested, or for what is newer; return those that cannot."""
        newest = self._open[covered[-1]]
        until = time.monotonic() + newest.rests.next_s(error.retry_after_s)
        impatient = self._impatient(covered, error, until)
        if covered[-1] not in impatient and covered[-1] == self._about(newest.object_id)[-1]:
            newest.due = until
            self._unsent[newest.object_id] = covered[-1]
        return impatient

    def _await_image(self, covered: list[int], error: ImageGivenUp) -> list[int]:
        """Let requests wait until the server has taken the held image again; return those that cannot."""
        if self._held is None:
            return covered
        if covered[-1] < self._held.sequence:  # said before the server took it again
            return []
        self._held.given_up = True
        self._restore()
        return self._impatient(covered, error, time.monotonic())

    def _restore(self) -> None:
        """Send the held image again, when it is given up, prompts wait for it and no newer image is on its way."""
        held, deadline = self._held, max(self._deadlines(), default=0.0)
        if held is None or not held.given_up or self._about(None) or deadline <= time.monotonic():
            return
        due = 0.0
        if held.rests is None:
            held.rests = Rests(deadline, FIRST_IMAGE_REST_S, self._uniform)
        else:  # the last time led to no outline
            held.rests.deadline = deadline
            due = time.monotonic() + held.rests.next_s(None)
        image = self._note(None, held.message, None, held.rests)
        image.due, image.restores = due, True

    def _impatient(self, sequences: list[int], error: PolywandError, until: float) -> list[int]:
        """Those of the requests whose time is over by `until`. All remember what they met."""
        for sequence in sequences:
            self._open[sequence].refusal = error
        return [sequence for sequence in sequences if self._open[sequence].rests.deadline <= until]

    def _next(self) -> _Open | None:
        """What is to be sent next, now or later."""
        images = [self._open[sequence] for sequence in self._about(None)]
        unsent = (self._open[sequence] for sequence in self._unsent.values())
        free = [request for request in unsent if request.object_id is None or _may_leave(request, images)]
        return min(free, key=lambda request: request.due, default=None)

    def _about(self, object_id: str | None) -> list[int]:
        return [sequence for sequence, request in self._open.items() if request.object_id == object_id]

    def _prompts(self) -> dict[str, list[int]]:
        """The open prompts' sequences, by object."""
        prompts: dict[str, list[int]] = {}
        for sequence, request in self._open.items():
            if request.object_id is not None:
                prompts.setdefault(request.object_id, []).append(sequence)
        return prompts

    def _deadlines(self) -> list[float]:
        return [request.rests.deadline for request in self._open.values() if request.object_id is not None]

    def _close(self, sequence: int, answer: object) -> None:
        request = self._open.pop(sequence)
        if self._unsent.get(request.object_id) == sequence:
            del self._unsent[request.object_id]
        if request.waiter is not None:
            wake(request.waiter, answer)


def _may_leave(prompt: _Open, images: Iterable[_Open]) -> bool:
    """Whether a prompt may be sent while images are open.

    It must not follow an image that is newer than it. One that is newer than an image waits for how that ends.
    """
    return all(not prompt.sent and not image.sent and prompt.asked < image.asked for image in images)

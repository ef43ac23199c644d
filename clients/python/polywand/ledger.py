"""The open requests of a session: which to send, on which stream and when, and which reply answers which.

No input or output happens here; the synchronous and the asyncio session share it.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from polywand import errors
from polywand.answers import Update, Waiter, error_of, result_of
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S, Backoff, Uniform, system_uniform
from polywand.errors import ImageGivenUp, IncompletePrompt, PolywandError
from polywand.images import KnownImages
from polywand.open_requests import Forgetting, OpenRequest, OpenRequests
from polywand.results import Segmentation
from polywand.streams import NOTICES, Streams
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(slots=True)
class _HeldImage:
    """The image that a server accepted last, kept in case it has to be sent again.

    info: the server's answer. sequence: under which it was accepted.
    is_away: whether the current stream does not have it: the server has removed it, or the stream is a new one.
    backoff: of sending it again; None before the first time on a stream, and after an outline.
    """

    message: pb.InteractRequest
    info: pb.ImageInfo
    sequence: int
    is_away: bool = False
    backoff: Backoff | None = None

    @property
    def by_digest(self) -> pb.Image | None:
        """The image's digest as a message; None if the server sent none."""
        if not self.info.digest:
            return None
        image = self.message.image
        return pb.Image(
            digest=self.info.digest, value_range=image.value_range if image.HasField("value_range") else None
        )


class Ledger:
    """The open requests of one session. Not thread-safe: its owner has the lock.

    Newest wins here too: of each object, and of images, at most one request waits to be sent. A full server
    (QuotaExceeded) or an unavailable Triton (UNAVAILABLE) does not close a request: it is sent again after a delay,
    unless its deadline comes first or a newer request replaces it.

    Requests are sent on the current stream: `begin` makes it, when `stream_due_s` says so; a lost or draining stream
    is not current any more. What was sent on a stream is sent again on the next one when the stream has ended without
    an answer. On a draining one, answers still come.

    A new stream, or one whose idle server has removed the image, needs the image before the prompts. The ledger keeps
    the message of the last accepted image until a newer one is accepted or the session ends, and sends its digest, or
    the image itself to a server that does not hold it.

    reconnects: whether there may be a second stream; if not, the end of the first one ends the session.
    known: the images that the client's servers may hold. uniform: the random numbers of the backoff.
    """

    def __init__(
        self, uniform: Uniform | None = None, *, known: KnownImages | None = None, reconnects: bool = True
    ) -> None:
        self._uniform = uniform or system_uniform()
        self._known = known or KnownImages()
        self._open = OpenRequests()
        self._held: _HeldImage | None = None
        self._end: PolywandError | None = None
        self._streams = Streams("a session", may_reconnect=reconnects, uniform=uniform)

    @property
    def ended(self) -> PolywandError | None:
        """The error that ended the session; None while it is open."""
        return self._end

    def add(
        self, message: pb.InteractRequest, waiter: Waiter | None, timeout_s: float, by_digest: pb.Image | None = None
    ) -> int:
        """Add a request to send, and return its sequence.

        timeout_s: for how long it may be sent again. by_digest: see `KnownImages`. Raises the error that ended the
        session, if it has ended.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        deadline = time.monotonic() + timeout_s
        if message.HasField("forget"):
            return self._add_forget(message, waiter, Backoff(deadline, FIRST_DELAY_S, self._uniform))
        if message.HasField("prompt"):
            backoff = Backoff(deadline, FIRST_DELAY_S, self._uniform)
            sequence = self._open.add(message.prompt.object_id, message, waiter, backoff).caller_sequence
            self._restore()
            return sequence
        for sequence in self._open.of(None):
            if self._open[sequence].is_restore and self._open.is_unsent(sequence):
                self._open.close(sequence, None)  # needed only if the newer image fails
        image = self._open.add(None, message, waiter, Backoff(deadline, FIRST_IMAGE_DELAY_S, self._uniform))
        image.by_digest = by_digest
        return image.caller_sequence

    def stream_due_s(self) -> float | None:
        """Return the seconds until a new stream is needed; None: not before the next call of another method."""
        due = min((request.due for request in self._open.unsent()), default=None)
        if self._end is not None or self._streams.current or due is None:
            return None
        return self._streams.due_s(due)

    def begin(self) -> int:
        """Begin a stream, which is the current one from now on, and return its number."""
        stream = self._streams.begin()
        if self._held is not None:
            self._held.is_away, self._held.backoff = True, None
            self._restore()
        return stream

    def is_current(self, stream: int) -> bool:
        """Return whether requests may be sent on a stream; if not, its sender half-closes it."""
        return self._end is None and stream == self._streams.current

    def pause_s(self) -> float | None:
        """Return the seconds until a request is due; None: not before the next call of another method."""
        request = self._next()
        return None if request is None else max(0.0, request.due - time.monotonic())

    def pop(self, stream: int) -> pb.InteractRequest | None:
        """Return the message to send now on a stream, or None: new requests first, in the order of `add`, then retries.

        It is valid until the next call.
        """
        request = self._next()
        if request is None or request.due > time.monotonic() or not self.is_current(stream):
            return None
        message = request.message
        if request.by_digest is not None:
            message = pb.InteractRequest(image=request.by_digest)
        message.sequence = self._open.sent(request, stream)
        return message

    def answer(self, reply: pb.InteractResponse, stream: int) -> list[Update] | pb.ImageInfo:
        """Close the requests that a reply answers, and return its updates of objects, or the new image.

        A reply about an object answers all its requests up to the reply's; a new image closes all requests before it.
        """
        kind = reply.WhichOneof("result")
        if kind == "draining" and self._streams.drain(stream, reply.draining):
            self._leave_behind()
            self._send_all()
        if kind in NOTICES:
            return []
        self._streams.received(stream)
        request = self._open.get(reply.sequence)
        if request is None:  # a late answer about an earlier image, or a forgotten object
            return []
        request.stream = 0
        if request.is_restore:
            return self._answer_restored(reply, request)
        covered = [sequence for sequence in self._open.of(request.subject) if sequence <= reply.sequence]
        if request.subject is None:
            return self._answer_image(reply, covered, stream)
        if isinstance(request.subject, Forgetting):
            self._open.close(reply.sequence, None if reply.HasField("forgotten") else error_of(reply))
            return []
        result = result_of(reply, len(covered) - 1, None if self._held is None else self._held.info)
        settled = self._settle(covered, result, stream)
        update = Update(request.subject, request.caller_sequence, len(settled) - 1, result)
        return [update] if reply.sequence in settled else []

    def lost(self, stream: int, error: PolywandError, *, is_final: bool) -> list[Update]:
        """Note that a stream has ended, and return the updates of objects whose requests expire before the next one.

        error: why. is_final: whether a new stream would meet the same.
        """
        if self._end is not None:
            return []
        is_current = stream == self._streams.current
        if (end := self._streams.lose(stream, error, is_final=is_final)) is not None:
            self.end(end)
            return []
        for sequence in self._open:
            if self._open[sequence].stream == stream:
                self._open[sequence].stream = 0
                if isinstance(self._open[sequence].subject, Forgetting):  # with the stream, its objects are gone
                    self._open.close(sequence, None)
        updates: list[Update] = []
        if is_current:
            until = self._streams.wait(self._open.last_deadline())
            updates = self._fail_expired(errors.broken(error), until, images=True)
            self._leave_behind()
        self._send_all()
        return updates

    def refusal(self, waiter: Waiter) -> PolywandError | None:
        """Return the last error of a postponed request, or None."""
        return next((self._open[s].refusal for s in self._open if self._open[s].waiter is waiter), None)

    def end(self, error: PolywandError) -> None:
        """Fail all open and all later requests. Only the first end counts."""
        self._end = self._end or error
        self._held = None
        for sequence in self._open:
            self._open.close(sequence, self._end)

    def _add_forget(self, message: pb.InteractRequest, waiter: Waiter | None, backoff: Backoff) -> int:
        """Close the requests about these objects, and tell the server, if it knows the objects."""
        forget = message.forget
        subject = Forgetting(forget.object_id if forget.WhichOneof("objects") == "object_id" else None)
        for object_id, sequences in self._open.prompts().items():
            if subject.covers(object_id):
                for sequence in sequences:
                    self._open.close(sequence, errors.Superseded("The object of this request was forgotten."))
        sequence = self._open.add(subject, message, waiter, backoff).caller_sequence
        if not self._streams.current or self._held is None or self._held.is_away:
            self._open.close(sequence, None)
        return sequence

    def _leave_behind(self) -> None:
        """Close the requests that only the current stream needed, which is left."""
        for sequence in self._open:
            request = self._open[sequence]
            if request.is_restore or (isinstance(request.subject, Forgetting) and not request.stream):
                self._open.close(sequence, None)

    def _send_all(self) -> None:
        """Send the newest requests again that wait for no answer."""
        for subject in {self._open[sequence].subject: None for sequence in self._open}:
            self._open.send_newest(subject)

    def _answer_image(self, reply: pb.InteractResponse, covered: list[int], stream: int) -> list[Update] | pb.ImageInfo:
        image = self._open[reply.sequence]
        if reply.HasField("image"):
            self._known.add(image.message.image, reply.image)
            self._held = _HeldImage(image.message, reply.image, reply.sequence, is_away=stream != self._streams.current)
            self._open.close(reply.sequence, reply.image)
            for sequence in self._open:
                request = self._open[sequence]
                if request.caller_sequence < image.caller_sequence:
                    self._open.close(sequence, None if isinstance(request.subject, Forgetting) else errors.Superseded())
            self._restore()
            return reply.image
        error = error_of(reply)
        if image.by_digest is not None and not errors.is_temporary(error):  # not held, or digests are not known
            self._known.discard(image.by_digest)
            image.by_digest = None
            self._open.send_newest(None)
            return []
        # The last image stays, and so do its prompts.
        for sequence in [sequence for sequence in covered if self._open[sequence].is_restore]:
            covered.remove(sequence)
            self._open.close(sequence, None)
        self._settle(covered, error, stream)
        self._restore()
        return []

    def _answer_restored(self, reply: pb.InteractResponse, image: OpenRequest) -> list[Update]:
        """After the reply to a restored image: send its prompts again, postpone them, or fail those that expired."""
        assert self._held is not None
        if reply.HasField("image"):
            self._open.close(reply.sequence, None)
            self._held.sequence, self._held.is_away = reply.sequence, False
            self._send_all()
            return []
        if self._open.of(None)[-1] != reply.sequence:  # a newer image is open
            self._open.close(reply.sequence, None)
            return []
        refusal = error_of(reply)
        if image.by_digest is not None and not errors.is_temporary(refusal):
            image.by_digest = None
            self._open.send_newest(None)
            return []
        error, until = errors.image_not_restored(refusal), math.inf
        if errors.is_temporary(refusal):
            image.backoff.deadline = self._open.last_deadline(of_prompts=True)
            until = time.monotonic() + image.backoff.next_s(refusal.retry_after_s)
        updates = self._fail_expired(error, until)
        if self._open.prompts():
            self._open.send_newest(None, until)
        else:
            self._open.close(reply.sequence, None)
        return updates

    def _fail_expired(self, error: PolywandError, until: float, *, images: bool = False) -> list[Update]:
        """Fail all prompts whose deadline is not after `until`, and note the error at the others. images: these too."""
        updates = []
        for object_id, sequences in self._open.prompts().items():
            expired = self._expired(sequences, error, until)
            if sequences[-1] in expired:
                updates.append(Update(object_id, self._open[sequences[-1]].caller_sequence, len(expired) - 1, error))
            for sequence in expired:
                self._open.close(sequence, error)
        if images:
            for sequence in self._expired(self._open.of(None), error, until):
                self._open.close(sequence, error)
        return updates

    def _settle(self, covered: list[int], answer: Segmentation | PolywandError, stream: int) -> list[int]:
        """Close the requests that an answer covers, but for those that are sent again, and return them."""
        for sequence in covered:
            self._open[sequence].stream = 0
        if isinstance(answer, ImageGivenUp) and self._held is not None:
            return self._await_image(covered, answer, stream)
        if errors.is_temporary(answer):
            newest = self._open[covered[-1]]
            return self._postpone(covered, answer, newest.backoff.next_s(answer.retry_after_s))
        if isinstance(answer, Segmentation | IncompletePrompt):
            self._streams.succeeded()
            if self._held is not None:
                self._held.backoff = None
        for sequence in covered:
            self._open.close(sequence, answer)
        return covered

    def _postpone(self, covered: list[int], error: PolywandError, delay_s: float) -> list[int]:
        """Send the newest of these requests again after a delay; close and return those that expire before."""
        subject, until = self._open[covered[-1]].subject, time.monotonic() + delay_s
        expired = self._expired(covered, error, until)
        for sequence in expired:
            self._open.close(sequence, error)
        self._open.send_newest(subject, until)
        return expired

    def _await_image(self, covered: list[int], error: ImageGivenUp, stream: int) -> list[int]:
        """Send the newest of these requests again when the server has accepted the held image again."""
        assert self._held is not None  # checked by the caller
        if stream == self._streams.current and covered[-1] >= self._held.sequence:  # else it was sent before that
            self._held.is_away = True
        expired = self._postpone(covered, error, 0.0)
        self._restore()
        return expired

    def _restore(self) -> None:
        """Send the held image again if the stream lacks it, prompts wait for it and no newer image is open."""
        held, deadline = self._held, self._open.last_deadline(of_prompts=True)
        if held is None or not held.is_away or not self._streams.current:
            return
        if self._open.of(None) or deadline <= time.monotonic():
            return
        due = 0.0
        if held.backoff is None:
            held.backoff = Backoff(deadline, FIRST_IMAGE_DELAY_S, self._uniform)
        else:  # the last time gave no outline
            held.backoff.deadline = deadline
            due = time.monotonic() + held.backoff.next_s(None)
        image = self._open.add(None, held.message, None, held.backoff)
        image.by_digest, image.due, image.is_restore = held.by_digest, due, True

    def _expired(self, sequences: list[int], error: PolywandError, until: float) -> list[int]:
        """Return the requests whose deadline is not after `until`, and note the error at all."""
        for sequence in sequences:
            self._open[sequence].refusal = error
        return [sequence for sequence in sequences if self._open[sequence].backoff.deadline <= until]

    def _next(self) -> OpenRequest | None:
        """Return the request to send next, now or later."""
        images = self._open.images()
        is_away = self._held is not None and self._held.is_away
        free = [
            request
            for request in self._open.unsent()
            if not isinstance(request.subject, str) or (not is_away and _may_be_sent(request, images))
        ]
        return min(free, key=lambda request: request.due, default=None)


def _may_be_sent(prompt: OpenRequest, images: Iterable[OpenRequest]) -> bool:
    """Return whether a prompt may be sent while images are open.

    It must not be sent after an image that is newer. If it is newer than an image, it waits for that image's answer.
    """
    return all(not image.stream and prompt.caller_sequence < image.caller_sequence for image in images)

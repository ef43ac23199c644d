"""Which requests of a stream are still open, and which answer settles which."""

from dataclasses import dataclass
from typing import Any, Protocol

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.results import Segmentation
from polywand.v1 import annotation_pb2 as pb


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


@dataclass(frozen=True, slots=True)
class _Open:
    object_id: str | None  # None: an image
    waiter: Waiter | None


class Ledger:
    """The open requests of one stream. It holds no lock: its owner lets one thread in at a time."""

    def __init__(self) -> None:
        self._sequence = 0
        self._open: dict[int, _Open] = {}  # by ascending sequence
        self._end: PolywandError | None = None

    @property
    def ended(self) -> PolywandError | None:
        """What ended the stream; None while it lives."""
        return self._end

    def ask(self, object_id: str | None, waiter: Waiter | None) -> int:
        """Note a request about an object (None: an image) and return its sequence.

        Raises what ended the stream, when something has.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        self._sequence += 1
        self._open[self._sequence] = _Open(object_id, waiter)
        return self._sequence

    def answer(self, reply: pb.InteractResponse) -> Update | pb.ImageInfo | None:
        """Settle what a reply answers, and return it when it is about an object or the new image.

        A reply about an object settles all its requests up to the reply's; a new image settles everything before it.
        """
        if reply.WhichOneof("result") == "draining":
            self.end(errors.from_draining(reply.draining))
            return None
        asked = self._open.get(reply.sequence)
        if asked is None:  # a late answer about an image that is gone
            return None
        if asked.object_id is None:
            return self._answer_image(reply)
        settled = [
            self._open.pop(sequence)
            for sequence, other in list(self._open.items())
            if sequence <= reply.sequence and other.object_id == asked.object_id
        ]
        update = Update(asked.object_id, reply.sequence, len(settled) - 1, _result(reply, len(settled) - 1))
        for request in settled:
            _wake(request, update.result)
        return update

    def end(self, error: PolywandError) -> None:
        """Fail whatever is open and whatever will be asked. Only the first end counts."""
        self._end = self._end or error
        while self._open:
            _wake(self._open.popitem()[1], self._end)

    def _answer_image(self, reply: pb.InteractResponse) -> pb.ImageInfo | None:
        image = self._open.pop(reply.sequence)
        if not reply.HasField("image"):  # the last image stays, and so do the prompts about it
            _wake(image, _result(reply, 0))
            return None
        for sequence in [sequence for sequence in self._open if sequence < reply.sequence]:
            _wake(self._open.pop(sequence), errors.Superseded())
        _wake(image, reply.image)
        return reply.image


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


def _wake(request: _Open, answer: object) -> None:
    if request.waiter is None or request.waiter.done():
        return
    if isinstance(answer, PolywandError):
        request.waiter.set_exception(answer)
    else:
        request.waiter.set_result(answer)

"""The frames of a `detect_stream`: which are to be sent, on which stream, and in which order their answers are due."""

from __future__ import annotations  # `help` shows the names of types, such as Detections

import time
from collections import deque
from typing import NamedTuple

from polywand import errors, wire
from polywand.backoff import Uniform
from polywand.errors import PolywandError
from polywand.results import Detections
from polywand.streams import NOTICES, Streams
from polywand_contract.v1 import annotation_pb2 as pb

FRAMES_AHEAD = 16
"""How many frames are read from the caller before it has consumed the answer to the first of them."""

LARGE_FRAME_BYTES = 64 << 20
"""A frame of this size or more is sent by a unary call: if it is too large for the server or a proxy, gRPC ends the
call that sent it."""


class FrameResult(NamedTuple):
    """The answer to one frame: a pair of its number, counted from 0, and its detections or its error."""

    number: int
    result: Detections | PolywandError

    @property
    def detections(self) -> Detections | None:
        """The detections; None if the frame failed."""
        return None if isinstance(self.result, PolywandError) else self.result

    @property
    def error(self) -> PolywandError | None:
        """The error of a frame that failed, else None."""
        return self.result if isinstance(self.result, PolywandError) else None

    def unwrap(self) -> Detections:
        """Return the detections. Raises the error of a frame that failed."""
        if isinstance(self.result, PolywandError):
            raise self.result
        return self.result


class FrameLog:
    """The open frames of one `detect_stream`. Not thread-safe: its owner has the lock.

    Frames are sent on the current stream, see `Ledger`; those that have no answer when it ends are sent again on the
    next one, in their order. A frame that cannot be read has its error at once, while earlier ones are still at the
    server; so answers are held back until all earlier frames have theirs.

    timeout_s: to wait for any one answer. reconnects: whether there may be a second stream.
    """

    def __init__(self, timeout_s: float, *, reconnects: bool = True, uniform: Uniform | None = None) -> None:
        self._timeout_s = timeout_s
        self._streams = Streams("a stream of frames", may_reconnect=reconnects, uniform=uniform)
        self._count = self._consumed = 0
        self._is_complete = False
        self._added_at: dict[int, float] = {}  # of frames that are not yielded, monotonic seconds
        self._requests: dict[int, pb.DetectStreamRequest] = {}  # without an answer, ascending
        self._unsent: deque[int] = deque()
        self._results: dict[int, Detections | PolywandError] = {}
        self._last_answer_at = 0.0
        self._due = 0  # the first frame whose answer was not yielded yet
        self._end: PolywandError | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more frame may be read from the caller."""
        return self._count - self._consumed < FRAMES_AHEAD

    @property
    def any_open(self) -> bool:
        """Whether a frame has no answer yet, or more may come."""
        return self._due < self._count or not self._is_complete

    @property
    def ended(self) -> PolywandError | None:
        """The error after which no stream will come; None while one may."""
        return self._end

    def add(self) -> int:
        """Add a frame, and return its number."""
        number = self._count
        self._count += 1
        self._added_at[number] = time.monotonic()
        return number

    def send(self, number: int, request: pb.DetectRequest) -> None:
        """Set the request of a frame, which is to be sent."""
        self._requests[number] = pb.DetectStreamRequest(frame_id=number, request=request)
        self._unsent.append(number)

    def complete(self) -> None:
        """Note that no more frames come."""
        self._is_complete = True

    def put(self, number: int, result: Detections | PolywandError) -> None:
        """Add the answer to a frame."""
        self._results[number] = result
        self._last_answer_at = time.monotonic()

    def pop_result(self) -> FrameResult | None:
        """Return the answer that is due, or None."""
        if self._due not in self._results:
            return None
        number = self._due
        self._due += 1
        self._added_at.pop(number)
        return FrameResult(number, self._results.pop(number))

    def consumed(self) -> None:
        """Note that the caller wants the next answer."""
        self._consumed += 1

    def seconds_left(self) -> float:
        """Return the seconds left for the next answer: the timeout after the last one, or after its frame was added."""
        since = self._added_at.get(self._due)
        if since is None:
            return self._timeout_s
        return max(since, self._last_answer_at) + self._timeout_s - time.monotonic()

    def timeout(self, target: str) -> PolywandError:
        """Return the error when no second is left."""
        loss = self._streams.loss
        return errors.no_answer(target, self._timeout_s) if loss is None else errors.broken(loss)

    def stream_due_s(self) -> float | None:
        """Return the seconds until a new stream is needed; None: not before the next call of another method."""
        if self._end is not None or self._streams.current or not self._requests:
            return None
        return self._streams.due_s(0.0)

    def begin(self) -> int:
        """Begin a stream, on which all frames without an answer are sent, and return its number."""
        self._unsent = deque(self._requests)
        return self._streams.begin()

    def is_sending(self, stream: int) -> bool:
        """Return whether frames may still be sent on a stream; if not, its sender half-closes it."""
        return stream == self._streams.current and not (self._is_complete and not self._unsent)

    def pop(self, stream: int) -> pb.DetectStreamRequest | None:
        """Return the next message to send on a stream, or None."""
        if stream != self._streams.current or not self._unsent:
            return None
        return self._requests[self._unsent.popleft()]

    def answer(self, reply: pb.DetectStreamResponse, stream: int) -> None:
        """Take a reply; one to a frame that has its answer already is ignored."""
        if reply.HasField("draining"):
            self._streams.drain(stream, reply.draining)
        if reply.WhichOneof("result") in NOTICES:
            return
        self._streams.received(stream)
        if self._requests.pop(reply.frame_id, None) is not None:
            self._streams.succeeded()
            self.put(reply.frame_id, _result_of(reply))

    def lost(self, stream: int, error: PolywandError, *, is_final: bool) -> None:
        """Note that a stream has ended. error: why. is_final: whether a new stream would meet the same."""
        is_current = stream == self._streams.current
        self._end = self._streams.lose(stream, error, is_final=is_final)
        if is_current:
            self._streams.wait(time.monotonic() + self.seconds_left())

    def end(self, error: PolywandError) -> None:
        """Note that no stream will come any more, because of an error."""
        self._end = error


def _result_of(reply: pb.DetectStreamResponse) -> Detections | PolywandError:
    try:
        match reply.WhichOneof("result"):
            case "response":
                return wire.detections(reply.response)
            case "error":
                return errors.from_status(reply.error)
            case other:
                return errors.unexpected(other)
    except PolywandError as error:
        return error

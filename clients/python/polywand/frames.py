"""The open frames of a stream: since when they are open, and in which order their answers are due."""

import time
from collections.abc import Iterator
from typing import TypeAlias

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb

FRAMES_AHEAD = 16
"""How many frames are read from the caller before it has consumed the answer to the first of them."""

LARGE_FRAME_BYTES = 64 << 20
"""A frame of this size or more is sent by a unary call: if it is too large for the server or a proxy, gRPC ends the
call that sent it."""

FrameAnswer: TypeAlias = tuple[int, Detections | PolywandError]
"""The number of a frame, counted from 0, and its detections or its error."""


class FrameLog:
    """The open frames of one stream. One thread may `add` while another calls the rest.

    A frame that cannot be read has its error at once, while earlier ones are still at the server; so answers are held
    back until all earlier frames have theirs.
    """

    def __init__(self) -> None:
        self._count = 0
        self._added_at: dict[int, float] = {}  # of open frames, monotonic seconds
        self._early: dict[int, Detections | PolywandError] = {}
        self._due = 0  # the first frame whose answer was not yielded yet
        self._last_answer_at = 0.0

    def add(self) -> int:
        """Add a frame and return its number."""
        frame_id = self._count
        self._count += 1
        self._added_at[frame_id] = time.monotonic()
        return frame_id

    def put(self, frame_id: int, result: Detections | PolywandError) -> Iterator[FrameAnswer]:
        """Add an answer, and yield those that are due."""
        self._early[frame_id] = result
        self._last_answer_at = time.monotonic()
        while self._due in self._early:
            due = self._due
            self._due += 1
            self._added_at.pop(due, None)
            yield due, self._early.pop(due)

    @property
    def any_open(self) -> bool:
        """Whether a frame has no answer yet."""
        return self._due < self._count

    def seconds_left(self, timeout_s: float) -> float:
        """Return the seconds left for the next answer: `timeout_s` after the last one, or after its frame was added."""
        since = self._added_at.get(self._due)
        if since is None:
            return timeout_s
        return max(since, self._last_answer_at) + timeout_s - time.monotonic()


def answer(reply: pb.DetectStreamResponse) -> FrameAnswer:
    """Read the answer to one frame. Raises Draining when it is the stream's last message instead."""
    match reply.WhichOneof("result"):
        case "response":
            return reply.frame_id, wire.detections(reply.response)
        case "error":
            return reply.frame_id, errors.from_status(reply.error)
        case "draining":
            raise errors.from_draining(reply.draining)
        case other:
            return reply.frame_id, errors.unexpected(other)

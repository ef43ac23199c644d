"""The book-keeping of a stream of frames: which are open, how long, and in which order their answers are due."""

import time
from collections.abc import Iterator
from typing import TypeAlias

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb

FRAMES_AHEAD = 16
"""So many frames are taken from the caller before the answer to the first of them has been taken by the caller."""

LARGE_FRAME_BYTES = 64 << 20
"""A frame as large as this is sent by a call of its own: should it be too large for the server, or for what stands
before it, the transport ends the call in which it came."""

FrameAnswer: TypeAlias = tuple[int, Detections | PolywandError]
"""The number of a frame, counted from 0, and what was found on it or why nothing could be."""


class FrameLog:
    """The open frames of one stream. One thread may `take` while another does the rest.

    Frames that cannot even be read are answered on this side, at once, while earlier ones are still at the server; so
    answers are held back until those of all earlier frames are there.
    """

    def __init__(self) -> None:
        self._count = 0
        self._taken_at: dict[int, float] = {}  # of open frames, monotonic seconds
        self._early: dict[int, Detections | PolywandError] = {}
        self._due = 0  # the first frame whose answer has not been handed out
        self._last_answer_at = 0.0

    def take(self) -> int:
        """Number a frame."""
        frame_id = self._count
        self._count += 1
        self._taken_at[frame_id] = time.monotonic()
        return frame_id

    def put(self, frame_id: int, result: Detections | PolywandError) -> Iterator[FrameAnswer]:
        """Take an answer in, and hand out those that are due."""
        self._early[frame_id] = result
        self._last_answer_at = time.monotonic()
        while self._due in self._early:
            due = self._due
            self._due += 1
            self._taken_at.pop(due, None)
            yield due, self._early.pop(due)

    @property
    def any_open(self) -> bool:
        """Whether a frame has no answer yet."""
        return self._due < self._count

    def patience(self, timeout_s: float) -> float:
        """Seconds that may still be waited for an answer: `timeout_s` from the last one, or since a frame is open."""
        since = self._taken_at.get(self._due)
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

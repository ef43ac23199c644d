"""Streams of one session, one after another: which is the current one, and when the next one may begin."""

import logging
import time

from polywand import errors
from polywand.backoff import FIRST_DELAY_S, Backoff, Uniform, system_uniform
from polywand.errors import PolywandError, Unavailable
from polywand_contract.v1 import annotation_pb2 as pb

LONGEST_DELAY_S = 1.0  # an annotator waits, and a new stream costs a server little

# Kinds of results that answer nothing; None is one of a newer contract.
NOTICES = ("draining", "heartbeat", None)

_log = logging.getLogger("polywand")


class Streams:
    """The numbers of streams, from 1. Not thread-safe: its owner has the lock.

    may_reconnect: whether there may be a second one. what: what the streams belong to, for the log.
    """

    def __init__(self, what: str, *, may_reconnect: bool = True, uniform: Uniform | None = None) -> None:
        self.current = 0  # 0 is none
        self.loss: PolywandError | None = None  # why the last one ended, until something comes on the next one
        self._what, self._may_reconnect = what, may_reconnect
        self._uniform = uniform or system_uniform()
        self._count = 0
        self._begun_at = self._due = 0.0
        self._backoff: Backoff | None = None  # None after a success

    def due_s(self, at: float) -> float:
        """Return the seconds until the next stream may begin. at: when it is needed, in monotonic seconds."""
        return max(0.0, max(at, self._due) - time.monotonic())

    def begin(self) -> int:
        """Begin a stream, and return its number."""
        self._count += 1
        self.current, self._begun_at = self._count, time.monotonic()
        return self.current

    def received(self, stream: int) -> None:
        """Note that something came on a stream; log it once, if one was lost before."""
        if stream == self.current and self.loss is not None and self._may_reconnect:
            seconds = time.monotonic() - self._begun_at
            _log.info("%s goes on with a new stream, after %.2f s: %s", self._what, seconds, self.loss)
            self.loss = None

    def succeeded(self) -> None:
        """Note an answer: the next stream that is lost is replaced soon again."""
        self._backoff = None

    def drain(self, stream: int, draining: pb.Draining) -> bool:
        """Leave a stream whose server is about to stop, at once. Return False if it is not left."""
        if stream != self.current:
            return False
        self.loss = errors.from_draining(draining)
        if self._may_reconnect:
            self.current, self._due = 0, 0.0
        return self._may_reconnect

    def lose(self, stream: int, error: PolywandError, *, is_final: bool) -> PolywandError | None:
        """Note that a stream has ended with an error. Return the error that ends all, if there can be no other.

        is_final: whether a new stream would meet the same.
        """
        if stream != self.current:  # it was left before
            return None if self._may_reconnect else self.loss or error
        self.current = 0
        if not self._may_reconnect:
            return self.loss or error
        self.loss = error
        return error if is_final else None

    def wait(self, deadline: float) -> float:
        """Schedule the next stream after a delay, and return when it may begin.

        deadline: of what waits for it; both in monotonic seconds.
        """
        if self._backoff is None:
            self._backoff = Backoff(deadline, FIRST_DELAY_S, self._uniform, LONGEST_DELAY_S)
        self._backoff.deadline = deadline
        retry_after_s = self.loss.retry_after_s if isinstance(self.loss, Unavailable) else None
        self._due = time.monotonic() + self._backoff.next_s(retry_after_s)
        return self._due

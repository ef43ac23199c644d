"""Drains: a stream is told to move, because the server is about to stop or the stream is old; and heartbeats."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import grpc.aio

from polywand_server.errors import PolywandError, Reason, UnavailableError
from polywand_server.ops import metrics

# A stream on which nothing was sent for this long, and on which all is answered, ends.
QUIET_SECONDS = 1.0
# Of the drain's time, kept for the answers to what was read last; but at most 1 / ENDING_PART of it.
ENDING_SECONDS = 2.0
ENDING_PART = 4
# Of a stream's greatest age: streams that were opened together do not move together.
JITTER = 0.1

STOPPING = "the server is draining: reconnect, any replica will do"
OLD = "the stream has reached its greatest age: open a new one, any replica will do"


class Drain:
    """Whether a stream has to move, why, and since when."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._begun_at = self._ends_at = math.inf
        self.text = ""

    def begin(self, seconds: float, text: str) -> None:
        """Begin: the stream is read for so many seconds, less what ending takes. text: why, in words.

        A drain that has begun may get less time by another.
        """
        now = time.monotonic()
        if not self.has_begun:
            self._begun_at, self.text = now, text
        self._ends_at = min(self._ends_at, now + seconds - min(ENDING_SECONDS, seconds / ENDING_PART))
        self._begun.set()

    @property
    def has_begun(self) -> bool:
        """Whether the stream has to move."""
        return self._begun.is_set()

    async def wait(self) -> None:
        """Wait until it begins."""
        await self._begun.wait()

    def seconds_left(self, quiet_seconds: float = 0.0) -> float:
        """Return for how long a stream is still read; infinite before the drain.

        quiet_seconds: since the last message of the stream, and since all of it is answered.
        """
        if not self.has_begun:
            return math.inf
        now = time.monotonic()
        quiet_seconds = min(quiet_seconds, now - self._begun_at)
        return max(0.0, min(self._ends_at - now, QUIET_SECONDS - quiet_seconds))

    def milliseconds_left(self) -> int:
        """Return the longest time that a stream has left, which its client is told."""
        return max(0, round((self._ends_at - time.monotonic()) * 1000))


class Drains:
    """The drains of all streams.

    max_age_seconds: of a stream, give or take JITTER; 0 is no limit. seconds: that an old stream has to move.
    """

    def __init__(self, max_age_seconds: float, seconds: float) -> None:
        self._max_age_seconds = max_age_seconds
        self._seconds = seconds
        self._streams: set[Drain] = set()
        self._ends_at = math.inf

    @contextmanager
    def stream(self, end: Callable[[PolywandError], None]) -> Iterator[Drain]:
        """Make the drain of a stream that ends with the block. end: ends an old stream that has not moved in time."""
        drain, loop = Drain(), asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        self._streams.add(drain)

        def grow_old() -> None:
            self._begin(drain, self._seconds, OLD)
            timers.append(loop.call_later(self._seconds, end, _outlived()))

        if self._ends_at < math.inf:
            self._begin(drain, max(0.0, self._ends_at - time.monotonic()), STOPPING)
        elif self._max_age_seconds:
            age = self._max_age_seconds * random.uniform(1 - JITTER, 1 + JITTER)
            timers.append(loop.call_later(age, grow_old))
        try:
            yield drain
        finally:
            self._streams.discard(drain)
            for timer in timers:
                timer.cancel()

    def begin(self, seconds: float) -> None:
        """Tell all streams that the server is about to stop."""
        self._ends_at = time.monotonic() + seconds
        for drain in self._streams:
            self._begin(drain, seconds, STOPPING)

    def _begin(self, drain: Drain, seconds: float, text: str) -> None:
        if not drain.has_begun:
            metrics.STREAMS_MOVED.labels("age" if text is OLD else "drain").inc()
        drain.begin(seconds, text)


def _outlived() -> UnavailableError:
    return UnavailableError("the stream did not move in time: open a new one", reason=Reason.SERVER_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Notices:
    """Messages of a stream that answer nothing.

    draining: makes the announcement of a drain, of its text and the milliseconds that the stream has left.
    """

    draining: Callable[[str, int], bytes]
    heartbeat: bytes


class Writer:
    """Writes a stream's replies, and between two of them the announcement of its drain, as soon as that begins.

    Use as an async context manager, around all of the stream's work. heartbeat_seconds: without a reply, after which a
    heartbeat is written; 0 is never.
    """

    def __init__(
        self,
        context: "grpc.aio.ServicerContext[Any, Any]",
        drain: Drain,
        notices: Notices,
        heartbeat_seconds: float,
    ) -> None:
        self.drain = drain
        self._context = context
        self._notices = notices
        self._heartbeat_seconds = heartbeat_seconds
        self._one_by_one = asyncio.Lock()
        self._written_at = time.monotonic()

    async def write(self, data: bytes) -> None:
        """Write a reply; returns when gRPC has taken it."""
        async with self._one_by_one:
            await self._context.write(data)
            self._written_at = time.monotonic()

    async def __aenter__(self) -> Self:
        self._announcing = asyncio.create_task(self._announce(), name="announce the drain")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self.drain.has_begun:
            self._announcing.cancel()
        await asyncio.wait((self._announcing,))
        if not self._announcing.cancelled():
            self._announcing.exception()  # the stream's own work has met the same

    async def _announce(self) -> None:
        while not await self._begins_in(self._heartbeat_seconds - (time.monotonic() - self._written_at)):
            # A reply that is being written takes its place: a client that does not read gets none on top.
            is_quiet = time.monotonic() - self._written_at >= self._heartbeat_seconds
            if is_quiet and not self._one_by_one.locked():
                await self.write(self._notices.heartbeat)
                metrics.HEARTBEATS.inc()
            elif is_quiet:
                self._written_at = time.monotonic()
        await self.write(self._notices.draining(self.drain.text, self.drain.milliseconds_left()))

    async def _begins_in(self, seconds: float) -> bool:
        """Wait for the drain, and no longer than until the next heartbeat; return whether it has begun."""
        try:
            async with asyncio.timeout(seconds if self._heartbeat_seconds else None):
                await self.drain.wait()
        except TimeoutError:
            return False
        return True

"""The drain: it is announced to all streams at once, and ends each of them when it is quiet, or in time."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Self

import grpc.aio

# A stream on which nothing was sent for this long, and on which all is answered, ends.
QUIET_SECONDS = 1.0
# Of the drain's time, kept for the answers to what was read last; but at most 1 / ENDING_PART of it.
ENDING_SECONDS = 2.0
ENDING_PART = 4


class Drain:
    """Whether the server is about to stop, and since when."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._begun_at = self._ends_at = math.inf

    def begin(self, seconds: float) -> None:
        """Begin: streams are read for so many seconds, less what ending takes."""
        self._begun_at = time.monotonic()
        self._ends_at = self._begun_at + seconds - min(ENDING_SECONDS, seconds / ENDING_PART)
        self._begun.set()

    @property
    def has_begun(self) -> bool:
        """Whether the server is about to stop."""
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


class Writer:
    """Writes a stream's replies, and between two of them the announcement of the drain, as soon as it begins.

    Use as an async context manager, around all of the stream's work. announcement: makes the message, of the
    milliseconds that the stream has left.
    """

    def __init__(
        self,
        context: "grpc.aio.ServicerContext[Any, Any]",
        drain: Drain,
        announcement: Callable[[int], bytes],
    ) -> None:
        self._context = context
        self._drain = drain
        self._announcement = announcement
        self._one_by_one = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        """Write a reply; returns when gRPC has taken it."""
        async with self._one_by_one:
            await self._context.write(data)

    async def __aenter__(self) -> Self:
        self._announcing = asyncio.create_task(self._announce(), name="announce the drain")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self._drain.has_begun:
            self._announcing.cancel()
        await asyncio.wait((self._announcing,))
        if not self._announcing.cancelled():
            self._announcing.exception()  # the stream's own work has met the same

    async def _announce(self) -> None:
        await self._drain.wait()
        await self.write(self._announcement(self._drain.milliseconds_left()))

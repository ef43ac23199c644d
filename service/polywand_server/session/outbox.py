"""Outboxes: replies that wait for their stream's reader, counted in bytes, for each stream and for all together."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from polywand_server.ops import metrics
from polywand_server.session.answers import Reply

# Replies of one stream that may wait; beyond, its prompts are skipped and its messages are not read.
MOST_REPLIES = 16


class Unread:
    """The bytes that wait in all outboxes together.

    stream_bytes: limit of one stream; beyond, its next reply waits. total_bytes: limit of all; beyond, the stream with
    the most bytes is ended.
    """

    def __init__(self, stream_bytes: int, total_bytes: int) -> None:
        self.stream_bytes = stream_bytes
        self._total_bytes = total_bytes
        self._bytes = 0
        self._boxes: set[Outbox] = set()

    def join(self, box: "Outbox") -> None:
        """Add an outbox."""
        self._boxes.add(box)

    def leave(self, box: "Outbox") -> None:
        """Remove an outbox."""
        self._boxes.discard(box)

    def grow(self, nbytes: int) -> None:
        """Add bytes that wait; past the total limit, end the stream with the most."""
        self._bytes += nbytes
        metrics.REPLY_MEMORY.inc(nbytes)
        if self._bytes > self._total_bytes and nbytes > 0:
            max(self._boxes, key=lambda box: box.nbytes).overflow()


class Outbox:
    """The replies of one stream. overflow: ends the stream, because its reader is too far behind."""

    def __init__(self, unread: Unread, overflow: Callable[[], None]) -> None:
        self._unread = unread
        self.overflow = overflow
        self.nbytes = 0
        self._queue: deque[Reply | None] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Condition()
        self._is_closed = False
        unread.join(self)

    @property
    def is_empty(self) -> bool:
        """Whether all replies were read."""
        return not self.nbytes

    async def put(self, reply: Reply | None) -> None:
        """Wait until a reply fits, and add it; None marks the end."""
        nbytes = 0 if reply is None else reply.nbytes
        self._grow(nbytes)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._has_room(nbytes))
                self._queue.append(reply)
                self._queued_bytes += nbytes
                self._changed.notify_all()
        except BaseException:
            self._grow(-nbytes)
            raise

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """Yield replies until the end; each counts until the next one is requested, when it has been sent."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._queue)
                reply = self._queue.popleft()
                if reply is None:
                    return
            try:
                yield reply
            finally:
                self._grow(-reply.nbytes)
                self._queued_bytes -= reply.nbytes
            async with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """Discard the replies that wait."""
        self._grow(-self.nbytes)
        self._is_closed = True
        self._queue.clear()
        self._unread.leave(self)

    def _has_room(self, nbytes: int) -> bool:
        if len(self._queue) >= MOST_REPLIES:
            return False
        return not self._queued_bytes or self._queued_bytes + nbytes <= self._unread.stream_bytes

    def _grow(self, nbytes: int) -> None:
        if not self._is_closed:
            self.nbytes += nbytes
            self._unread.grow(nbytes)

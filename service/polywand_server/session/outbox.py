"""Outboxes: replies that wait for their stream's reader, counted in bytes, for each stream and for all together."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from polywand_server.ops import metrics
from polywand_server.session.answers import Reply

# Replies of one stream that may wait; after that its prompts are skipped and its messages left on the wire.
MOST_REPLIES = 16


class Unread:
    """What waits in all outboxes together.

    stream_bytes: of one stream, before its next answer waits. total_bytes: of all; beyond it, the stream that has most
    is ended.
    """

    def __init__(self, stream_bytes: int, total_bytes: int) -> None:
        self.stream_bytes = stream_bytes
        self._total_bytes = total_bytes
        self._bytes = 0
        self._boxes: set[Outbox] = set()

    def join(self, box: "Outbox") -> None:
        """One outbox more."""
        self._boxes.add(box)

    def leave(self, box: "Outbox") -> None:
        """One outbox less."""
        self._boxes.discard(box)

    def grow(self, nbytes: int) -> None:
        """Count bytes that wait; when there are too many, end the stream whose reader is furthest behind."""
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

    async def put(self, reply: Reply | None) -> None:
        """Wait for room, and add a reply; None is the last."""
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
        """Yield replies until the last; each counts until the next one is asked for, which is when it has left."""
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
        """Forget what waits."""
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

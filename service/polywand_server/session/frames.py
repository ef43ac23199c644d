"""The frames of one stream: several are in work at once, and the results are in the order of the frames."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class FrameQueue(Generic[Result]):
    """Runs the work on frames. Use as an async context manager: on exit all work is cancelled.

    at_once: most frames in work, and most results that wait to be read.
    """

    def __init__(self, at_once: int) -> None:
        self._permits = asyncio.Semaphore(at_once)
        self._queue: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue(at_once)
        self._running: set[asyncio.Task[Result]] = set()
        self._unanswered = 0
        self._used_at = time.monotonic()

    async def __aenter__(self) -> "FrameQueue[Result]":
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def idle_seconds(self) -> float:
        """Seconds since the last result was read; 0 while one is not."""
        return 0.0 if self._unanswered else time.monotonic() - self._used_at

    async def wait_for_capacity(self) -> None:
        """Wait until one more frame may be in work; to be called before each `put`."""
        await self._permits.acquire()

    async def put(self, work: Coroutine[Any, Any, Result]) -> None:
        """Start the work on a frame, and wait until the queue of results has room for it."""
        self._unanswered += 1
        task = asyncio.create_task(work, name="answer a frame")
        self._running.add(task)
        task.add_done_callback(self._end)
        await self._queue.put(task)

    async def finish(self) -> None:
        """End `results` after the last frame."""
        await self._queue.put(None)

    async def results(self) -> AsyncGenerator[Result, None]:
        """Yield the results in the order of the frames, until `finish`."""
        while (task := await self._queue.get()) is not None:
            yield await task
            self._unanswered -= 1
            self._used_at = time.monotonic()

    def _end(self, task: asyncio.Task[Result]) -> None:
        self._running.discard(task)
        self._permits.release()

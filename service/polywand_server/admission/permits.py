"""Permits for frames and for calls of many prompts: how many are in work together, and how they yield to others."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from polywand_server.admission.turns import Turns
from polywand_server.timing import Stopwatch

T = TypeVar("T")

# Frames that may hold a picture without a permit; the next one keeps its permit.
MOST_PAUSED = 32
# Objects of one frame in work at once: two full batches of most models, one at Triton and one that is prepared.
SIDE_BY_SIDE = 16


class FramePermits:
    """Permits to work on a frame.

    turns: bound the permits, and share them among clients. paused_bytes: limit of the pictures of all paused frames.
    """

    def __init__(self, turns: Turns, paused_bytes: int) -> None:
        self.turns = turns
        self._bytes_left = paused_bytes
        self._paused = 0

    @asynccontextmanager
    async def permit(
        self, until_paused: AsyncExitStack, paused: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> AsyncIterator["FramePermit"]:
        """Wait for a permit, and hold it until the block ends.

        until_paused: other resources of the frame, which are released when it first yields. paused: entered while it
        waits again.
        """
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.turns.turn())
            yield FramePermit(self, turn, until_paused, paused)

    def may_pause(self, nbytes: int) -> bool:
        """Whether one more picture may be held without a permit."""
        return nbytes <= self._bytes_left and self._paused < MOST_PAUSED

    def try_to_pause(self, nbytes: int) -> bool:
        """Count a picture that is held without a permit; return False if that exceeds a limit."""
        if not self.may_pause(nbytes):
            return False
        self._bytes_left -= nbytes
        self._paused += 1
        return True

    def resume(self, nbytes: int) -> None:
        """Uncount a picture."""
        self._bytes_left += nbytes
        self._paused -= 1


class FramePermit:
    """One frame's permit."""

    def __init__(
        self,
        permits: FramePermits,
        turn: AsyncExitStack,
        until_paused: AsyncExitStack,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._permits = permits
        self._turn = turn
        self._until_paused = until_paused
        self._paused = paused

    async def side_by_side(
        self, jobs: Iterable[Callable[[], Coroutine[Any, Any, T]]], nbytes: int, timer: Stopwatch
    ) -> list[T]:
        """Run the work on a frame's objects, several at once; return the results in the order of the jobs.

        If a frame waits for a permit, those in work are finished and it is released, once in SIDE_BY_SIDE jobs.
        nbytes: see `yield_to_others`.

        Raises the first error of a job; the others are cancelled.
        """
        tasks: list[asyncio.Task[T]] = []
        running: set[asyncio.Task[T]] = set()
        begun = 0  # since the frame last yielded
        try:
            for job in jobs:
                if begun >= SIDE_BY_SIDE and self._permits.turns.waiting and self._permits.may_pause(nbytes):
                    running, begun = await _wait(running, asyncio.ALL_COMPLETED), 0
                    await self.yield_to_others(nbytes, timer)
                if len(running) >= SIDE_BY_SIDE:
                    running = await _wait(running, asyncio.FIRST_COMPLETED)
                tasks.append(asyncio.create_task(job(), name="work on an object"))
                running.add(tasks[-1])
                begun += 1
            while running:
                running = await _wait(running, asyncio.FIRST_EXCEPTION)
            return [task.result() for task in tasks]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def yield_to_others(self, nbytes: int, timer: Stopwatch) -> None:
        """Release the permit if a frame waits for one, and acquire another.

        nbytes: of the picture that is held meanwhile. If that exceeds a limit, the permit is kept.
        """
        permits = self._permits
        if not permits.turns.waiting or not permits.try_to_pause(nbytes):
            return
        try:
            with timer.stage("wait"), self._paused():
                await self._until_paused.aclose()
                await self._turn.aclose()
                await self._turn.enter_async_context(permits.turns.turn())
        finally:
            permits.resume(nbytes)


async def _wait(running: "set[asyncio.Task[T]]", until: str) -> "set[asyncio.Task[T]]":
    """Wait for tasks; return those that are still running. Raises the error of one that failed."""
    if not running:
        return running
    done, running = await asyncio.wait(running, return_when=until)
    for task in done:
        task.result()
    return running

"""Permits for frames: how many frames are in work together, and how a frame of many outlines yields to others."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from polywand_server.admission.turns import Turns
from polywand_server.timing import Stopwatch

# Frames that may hold a picture without a permit; the next one keeps its permit.
MOST_PAUSED = 32


class FramePermits:
    """Permits to work on a frame.

    turns: bound the permits, and share them among clients. paused_bytes: limit of the pictures of all paused frames.
    """

    def __init__(self, turns: Turns, paused_bytes: int) -> None:
        self.turns = turns
        self._bytes_left = paused_bytes
        self._paused = 0

    @asynccontextmanager
    async def permit(self, until_paused: AsyncExitStack) -> AsyncIterator["FramePermit"]:
        """Wait for a permit, and hold it until the block ends.

        until_paused: other resources of the frame, which are released when it first yields.
        """
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.turns.turn())
            yield FramePermit(self, turn, until_paused)

    def try_to_pause(self, nbytes: int) -> bool:
        """Count a picture that is held without a permit; return False if that exceeds a limit."""
        if nbytes > self._bytes_left or self._paused == MOST_PAUSED:
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

    def __init__(self, permits: FramePermits, turn: AsyncExitStack, until_paused: AsyncExitStack) -> None:
        self._permits = permits
        self._turn = turn
        self._until_paused = until_paused

    async def yield_to_others(self, nbytes: int, timer: Stopwatch) -> None:
        """Release the permit if a frame waits for one, and acquire another.

        nbytes: of the picture that is held meanwhile. If that exceeds a limit, the permit is kept.
        """
        permits = self._permits
        if not permits.turns.waiting or not permits.try_to_pause(nbytes):
            return
        try:
            with timer.stage("wait"):
                await self._until_paused.aclose()
                await self._turn.aclose()
                await self._turn.enter_async_context(permits.turns.turn())
        finally:
            permits.resume(nbytes)

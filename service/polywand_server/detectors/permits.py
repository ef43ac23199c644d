"""Permits for frames: how many frames are in work together, and how a frame of many outlines yields to others."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from polywand_server.admission.turns import Turns
from polywand_server.timing import Stopwatch

# Frames that may hold a picture without a permit; the next one keeps its permit.
MOST_PAUSED = 32


class FramePermits:
    """Permits to work on a frame.

    turns: bound how many there are, and share them among clients. paused_bytes: what the pictures of paused frames may
    take together.
    """

    def __init__(self, turns: Turns, paused_bytes: int) -> None:
        self.turns = turns
        self._bytes_left = paused_bytes
        self._paused = 0

    @asynccontextmanager
    async def permit(self, until_paused: AsyncExitStack) -> AsyncIterator["FramePermit"]:
        """Wait for a permit, and hold it until the block ends.

        until_paused: what else the frame holds that others wait for; closed when it yields for the first time.
        """
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.turns.turn())
            yield FramePermit(self, turn, until_paused)

    def try_to_pause(self, nbytes: int) -> bool:
        """Count a picture that is held without a permit, unless there are too many of them."""
        if nbytes > self._bytes_left or self._paused == MOST_PAUSED:
            return False
        self._bytes_left -= nbytes
        self._paused += 1
        return True

    def resume(self, nbytes: int) -> None:
        """Stop to count a picture."""
        self._bytes_left += nbytes
        self._paused -= 1


class FramePermit:
    """One frame's permit."""

    def __init__(self, permits: FramePermits, turn: AsyncExitStack, until_paused: AsyncExitStack) -> None:
        self._permits = permits
        self._turn = turn
        self._until_paused = until_paused

    async def yield_to_others(self, nbytes: int, timer: Stopwatch) -> None:
        """Give the permit to a frame that waits, if one does, and wait for the next one.

        nbytes: of the picture that is held meanwhile. Where that would be too much, this frame goes on.
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

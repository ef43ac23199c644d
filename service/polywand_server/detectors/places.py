"""Places: the frames that are in work together, and how a frame of many outlines lets others go first."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from polywand_server.admission.turns import Turns
from polywand_server.timing import Stopwatch

# Frames that may hold a picture without a place; the next one keeps its own.
MOST_PAUSED = 32


class Places:
    """Gives frames their places.

    turns: at these. paused_bytes: that the pictures of frames may take which gave theirs back for a while.
    """

    def __init__(self, turns: Turns, paused_bytes: int) -> None:
        self.turns = turns
        self._bytes_left = paused_bytes
        self._paused = 0

    @asynccontextmanager
    async def place(self, until_paused: AsyncExitStack) -> AsyncIterator["Place"]:
        """Wait for a place, and hold it until the block ends.

        until_paused: what else the frame holds that others wait for; closed when it lets others go for the first time.
        """
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.turns.turn())
            yield Place(self, turn, until_paused)

    def try_to_pause(self, nbytes: int) -> bool:
        """Count a picture that is held without a place, where that is not too much."""
        if nbytes > self._bytes_left or self._paused == MOST_PAUSED:
            return False
        self._bytes_left -= nbytes
        self._paused += 1
        return True

    def go_on(self, nbytes: int) -> None:
        """Count one less."""
        self._bytes_left += nbytes
        self._paused -= 1


class Place:
    """One frame's place."""

    def __init__(self, places: Places, turn: AsyncExitStack, until_paused: AsyncExitStack) -> None:
        self._places = places
        self._turn = turn
        self._until_paused = until_paused

    async def let_others_go(self, nbytes: int, watch: Stopwatch) -> None:
        """Give the place to a frame that waits, if one does, and wait for the next one.

        nbytes: of the picture that is held meanwhile. Where that would be too much, this frame goes on.
        """
        places = self._places
        if not places.turns.waiting or not places.try_to_pause(nbytes):
            return
        try:
            with watch.stage("wait"):
                await self._until_paused.aclose()
                await self._turn.aclose()
                await self._turn.enter_async_context(places.turns.turn())
        finally:
            places.go_on(nbytes)

"""Precedence: prompts go before frames, because a hand waits for them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# A frame waits no longer than this for a pause between prompts, so that it gets on under any load.
PATIENCE_SECONDS = 0.25


class Precedence:
    """Knows whether a prompt is in work; frames ask before each of their stages."""

    def __init__(self) -> None:
        self._prompts = 0
        self._pause = asyncio.Event()
        self._pause.set()

    @contextmanager
    def prompt(self) -> Iterator[None]:
        """Hold frames back until the block ends."""
        self._prompts += 1
        self._pause.clear()
        try:
            yield
        finally:
            self._prompts -= 1
            if self._prompts == 0:
                self._pause.set()

    async def frame(self) -> None:
        """Wait for a pause between prompts, or until patience is over."""
        if self._pause.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._pause.wait()
        except TimeoutError:
            return

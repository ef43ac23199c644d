"""Changes: tasks that wait for something to change, without a lock."""

import asyncio
from contextlib import suppress


class Changes:
    """Wakes all tasks that wait at the moment. For the tasks of one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake all that wait."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float | None) -> None:
        """Wait for the next `notify`, at most so many seconds; None is without a limit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._next.wait()

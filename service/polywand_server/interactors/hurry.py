"""Hurry: whether a newer prompt waits for which the one in work is only in the way."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hurry:
    """Tells work on one prompt to come to an end.

    is_superseded: whether a newer prompt waits that does not build on this one. newer: set when another prompt comes;
    only one waits for it at a time.
    """

    is_superseded: Callable[[], bool]
    newer: asyncio.Event

    async def superseded(self) -> None:
        """Wait until it is."""
        while not self.is_superseded():
            self.newer.clear()
            await self.newer.wait()

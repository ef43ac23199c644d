"""The event loop's delay: how late it is with what is due, because something else has held it."""

import asyncio

from polywand_server.ops import metrics

PAUSE_SECONDS = 0.25


async def measure_delay() -> None:
    """Observe the delay a few times a second."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + PAUSE_SECONDS
        await asyncio.sleep(PAUSE_SECONDS)
        metrics.LOOP_DELAY.observe(clock() - due)

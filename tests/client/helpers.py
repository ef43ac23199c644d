"""What several of the client's tests use."""

import asyncio
import threading
import time
from collections.abc import Callable

FACE = (225, 110)
"""On the face of skimage's astronaut."""


def polywand_threads() -> list[str]:
    """The client's own threads that live now; grpc's carry no name of ours."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("polywand")]


async def comes_true(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until a condition holds that grpc's own threads and tasks may keep from holding for a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come true within {seconds} s"
        await asyncio.sleep(0.01)

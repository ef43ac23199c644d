"""The backlog of a stream: the bytes of its prompts that wait."""

import asyncio

from polywand_server.config import MEBIBYTE

# Beyond this, the stream's next message is not read.
BACKLOG_BYTES = 8 * MEBIBYTE


class Backlog:
    """Counts the bytes of one stream's waiting prompts."""

    def __init__(self) -> None:
        self._bytes = 0
        self._shrank = asyncio.Event()

    async def wait_for_capacity(self, nbytes: int, replaced_bytes: int) -> None:
        """Wait until one more prompt fits; a prompt of any size fits when no other waits.

        replaced_bytes: of the waiting prompt that it replaces, which are not counted.
        """
        while (others := self._bytes - replaced_bytes) and others + nbytes > BACKLOG_BYTES:
            self._shrank.clear()
            await self._shrank.wait()

    def add(self, nbytes: int) -> None:
        """Add the bytes of a prompt that waits."""
        self._bytes += nbytes

    def remove(self, nbytes: int) -> None:
        """Remove the bytes of a prompt."""
        self._bytes -= nbytes
        self._shrank.set()

"""End a call from outside of its own task, with an error for its client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from polywand_server.errors import PolywandError
from polywand_server.rpc.status import abort

# Time for the client to read the error.
TELL_SECONDS = 2.0


class Ending:
    """Ends the call of the task that created this object; errors after the first are ignored."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # gRPC runs each call in a task
        self._task = task
        self._error: PolywandError | None = None

    def __call__(self, error: PolywandError) -> None:
        """End the call with an error."""
        if self._error is None and not self._task.done():
            self._error = error
            self._task.cancel()

    @asynccontextmanager
    async def of(self, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[None]:
        """Send the error to the client when the block is cancelled; gRPC alone would leave the client waiting."""
        try:
            yield
        except asyncio.CancelledError:
            if self._error is None:
                raise
            self._task.uncancel()
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    await abort(context, self._error)
            except TimeoutError:  # the client does not read what was sent before
                raise asyncio.CancelledError from None

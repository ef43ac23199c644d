"""Endings: a call that is ended from outside of its own task, with an error that its client is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from polywand_server.errors import PolywandError
from polywand_server.rpc.status import abort

# How long a client may take to read that its call has ended.
TELL_SECONDS = 2.0


class Ending:
    """Ends the call of the task in which it was made; only the first error counts."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # gRPC makes one for each call
        self._task = task
        self._error: PolywandError | None = None

    def __call__(self, error: PolywandError) -> None:
        """End the call with an error."""
        if self._error is None and not self._task.done():
            self._error = error
            self._task.cancel()

    @asynccontextmanager
    async def of(self, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[None]:
        """Tell the client the error when the block is ended; gRPC alone would leave it waiting."""
        try:
            yield
        except asyncio.CancelledError:
            if self._error is None:
                raise
            self._task.uncancel()
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    await abort(context, self._error)
            except TimeoutError:  # what it has not read stands in front of this
                raise asyncio.CancelledError from None

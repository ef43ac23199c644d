"""Messages: read from a call one by one, when there is room for them."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from polywand_server.admission.bodies import FRAMES, Admission
from polywand_server.caller import current
from polywand_server.errors import DeadlineError, PolywandError, Reason
from polywand_server.rpc.draining import Drain, Drains, Notices, Writer
from polywand_server.rpc.ingress import Ingress

# How long the message of a unary call may take to come, once there is room for it.
RECEIVE_SECONDS = 60.0

# Generic for the type checker only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it


class Messages:
    """Reads the messages of calls, within what `Admission` lets in, and until the drain ends their stream."""

    def __init__(self, admission: Admission, ingress: Ingress, drains: Drains, heartbeat_seconds: float) -> None:
        self._admission = admission
        self._ingress = ingress
        self._drains = drains
        self._heartbeat_seconds = heartbeat_seconds

    def drain(self, seconds: float) -> None:
        """Tell all streams that the server is about to stop, and end each when it is quiet, at the latest in time."""
        self._drains.begin(seconds)

    @asynccontextmanager
    async def writer(
        self, context: Context, notices: Notices, end: Callable[[PolywandError], None]
    ) -> AsyncIterator[Writer]:
        """Make the writer of a stream's replies; see `Writer`. end: ends the stream with an error."""
        with self._drains.stream(end) as drain:
            async with Writer(context, drain, notices, self._heartbeat_seconds) as writer:
                yield writer

    async def only(self, context: Context) -> bytes:
        """Read the only message of a unary call, a small one. A client that sends none means an empty one.

        Raises:
            DeadlineError
        """
        try:
            async with asyncio.timeout(RECEIVE_SECONDS):
                data = await context.read()
        except TimeoutError:
            text = f"the message did not come within {RECEIVE_SECONDS:g} s"
            raise DeadlineError(text, reason=Reason.MESSAGE_TIMEOUT) from None
        if data is _EOF:
            return b""
        current().usage.received_bytes += len(data)
        return bytes(data)

    async def frame(self, context: Context, until_paused: AsyncExitStack) -> bytes:
        """Read the only message of a unary call with an image, when the line of such calls has come to it.

        until_paused: holds the call's turn.

        Raises:
            QuotaError: the line is full.
            DeadlineError
        """
        await until_paused.enter_async_context(self._admission.calls.turn())
        return await self._with_image(context, FRAMES)

    async def prompts(self, context: Context, until_paused: AsyncExitStack) -> bytes:
        """Read the only message of a unary call with an image and prompts; see `frame`.

        If there are many prompts, call `wait_as_frame` then.
        """
        await until_paused.enter_async_context(self._admission.clicks.turn())
        return await self._with_image(context, current().share)

    async def wait_as_frame(self, until_paused: AsyncExitStack) -> None:
        """Go from the line of calls with one prompt to that of calls with an image. Raises QuotaError: it is full."""
        await until_paused.aclose()
        await until_paused.enter_async_context(self._admission.calls.turn())

    async def _with_image(self, context: Context, payer: str) -> bytes:
        expected = await self._admission.pace.pause(payer)
        data = await self._admission.one_by_one(lambda: self.only(context))
        self._note(payer, len(data), expected)
        return data

    def body(self, nbytes: int) -> AbstractContextManager[None]:
        """Count a message of so many bytes until the block ends. Raises QuotaError."""
        return self._admission.body(nbytes)

    def of_frames(
        self, context: Context, drain: Drain, idle_seconds: Callable[[], float]
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield the messages of a stream of frames; see `of_stream`."""
        return self.of_stream(context, drain, FRAMES, idle_seconds)

    async def of_stream(
        self, context: Context, drain: Drain, payer: str, idle_seconds: Callable[[], float]
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield messages until the client has no more, or the stream's drain ends it.

        Each comes in a list, from which it is to be popped, so that nothing here holds it while the next is awaited.
        payer: of the bytes, see `Pace`. idle_seconds: since when all is answered; 0 while something is not.
        """
        drained = asyncio.create_task(drain.wait(), name="wait for the drain")
        coming: asyncio.Future[Any] | None = None
        try:
            while drain.seconds_left():
                expected = await self._admission.pace.pause(payer)
                coming, since = asyncio.ensure_future(context.read()), time.monotonic()
                await asyncio.wait((coming, drained), return_when=asyncio.FIRST_COMPLETED)
                while not coming.done():
                    seconds = drain.seconds_left(min(idle_seconds(), time.monotonic() - since))
                    if not seconds:
                        return
                    await asyncio.wait((coming,), timeout=seconds)
                message = [coming.result()]
                coming = None
                if message[0] is _EOF:
                    return
                current().usage.received_bytes += len(message[0])
                self._note(payer, len(message[0]), expected)
                yield message
        finally:
            await cancel(drained)
            if coming is not None:
                await cancel(coming)

    def _note(self, payer: str, nbytes: int, expected: int) -> None:
        """Count a message that was handed over. expected: bytes that `pause` has counted for it."""
        self._ingress.handed_over(nbytes)
        self._admission.pace.read(payer, nbytes, expected)


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and wait until it has ended."""
    task.cancel()
    # Awaiting the task itself could not tell its cancellation from that of the task which waits here.
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # retrieved, or asyncio would log it

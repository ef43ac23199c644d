"""The method Interact: between the messages of a stream and a session."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.caller import current
from polywand_server.errors import InvalidInputError, PolywandError, QuotaError, Reason
from polywand_server.lanes import Lane
from polywand_server.ops import tracing
from polywand_server.rpc.draining import Drain
from polywand_server.rpc.intake import Refused, is_small, receive_interact
from polywand_server.rpc.messages import Context, Messages, cancel
from polywand_server.rpc.replies import INTERACT_NOTICES, SMALL_REPLY_BYTES, write_reply
from polywand_server.rpc.requests import read_forget, read_image, read_prompt, short_id, short_names
from polywand_server.session.services import Services
from polywand_server.session.stream import Session
from polywand_server.timing import Stopwatch

# Of a stream that is ended because its replies are not read.
RETRY_SECONDS = 1.0


class InteractCalls:
    """Serves streams. lane: for messages that take long to read or to write."""

    def __init__(self, services: Services, messages: Messages, lane: Lane) -> None:
        self._services = services
        self._messages = messages
        self._lane = lane

    async def serve(self, context: Context, end: Callable[[PolywandError], None]) -> None:
        """Serve one stream until both sides have ended. end: ends it with an error.

        Raises:
            DecodeError
        """

        def overflow() -> None:
            text = "the replies of this stream are not read, and too many wait: read them, or ask for fewer"
            end(QuotaError("replies that wait", text, RETRY_SECONDS, reason=Reason.REPLIES_NOT_READ))

        async with (
            Session(self._services, current().share, overflow) as session,
            self._messages.writer(context, INTERACT_NOTICES, end) as writer,
        ):
            reader = asyncio.create_task(self._read(context, session, writer.drain), name="read a stream")
            try:
                async with aclosing(session.replies()) as replies:
                    async for reply in replies:
                        is_large = reply.nbytes > SMALL_REPLY_BYTES
                        await writer.write(await self._lane.compute_if(is_large, partial(write_reply, reply)))
                await reader
            finally:
                await cancel(reader)

    async def _read(self, context: Context, session: Session, drain: Drain) -> None:
        try:
            stream = self._messages.of_stream(context, drain, session.share, session.quiet_seconds)
            async with aclosing(stream) as messages:
                async for message in messages:
                    await self._take(session, message.pop())
        except Exception:
            # Whatever it was: queued prompts are answered, and then the stream ends with the error.
            await session.finish()
            raise
        await session.finish()

    async def _take(self, session: Session, data: bytes) -> None:
        """Give one message to the session."""
        timer = tracing.timer()
        received = await receive_interact(data, self._lane)
        if isinstance(received, Refused):
            await session.refuse(received.number, received.error, timer)
            return
        nbytes = len(data)
        del data  # an image is held by what it was received as, and no longer than that
        request, image = received.message, received.image
        del received
        kind = request.WhichOneof("payload")
        if kind == "prompt":
            await self._take_prompt(session, request, nbytes, timer)
            return
        if kind == "forget":
            await self._take_forget(session, request, timer)
            return
        try:
            if kind != "image":
                raise InvalidInputError("payload", "a request needs an image, a prompt, or objects to forget")
            with self._messages.body(nbytes):
                source = read_image(request.image, image, "image")
                del image
                await session.set_image(request.sequence, source, timer)
        except PolywandError as error:
            await session.refuse(request.sequence, error, timer)

    async def _take_prompt(self, session: Session, request: pb.InteractRequest, nbytes: int, timer: Stopwatch) -> None:
        current().usage.prompts += 1
        try:
            prompt = await self._lane.compute_if(not is_small(nbytes), lambda: read_prompt(request.prompt))
        except PolywandError as error:
            object_id, model = short_names(request.prompt)
            await session.refuse_prompt(request.sequence, object_id, model, error, timer)
        else:
            await session.submit(request.sequence, prompt, timer)

    async def _take_forget(self, session: Session, request: pb.InteractRequest, timer: Stopwatch) -> None:
        try:
            object_id = read_forget(request.forget)
        except PolywandError as error:
            await session.refuse(request.sequence, error, timer, short_id(request.forget.object_id))
        else:
            await session.forget(request.sequence, object_id, timer)

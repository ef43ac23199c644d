"""The methods Detect and DetectStream: between messages and frames."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.caller import current
from polywand_server.detectors.frames import FrameLoad, Frames
from polywand_server.errors import PolywandError, or_error
from polywand_server.lanes import Lane
from polywand_server.ops import tracing
from polywand_server.rpc.draining import Drain
from polywand_server.rpc.intake import Received, Refused, is_small, receive_detect, receive_frame
from polywand_server.rpc.messages import Context, Messages, cancel
from polywand_server.rpc.replies import FRAMES_NOTICES, write_detections, write_frame
from polywand_server.rpc.requests import read_detect, read_image
from polywand_server.session.frames import FrameQueue
from polywand_server.timing import Stopwatch


class DetectCalls:
    """Serves calls. lane: for messages that take long to read or to write. at_once: frames of a stream in work."""

    def __init__(self, frames: Frames, messages: Messages, lane: Lane, at_once: int) -> None:
        self._frames = frames
        self._messages = messages
        self._lane = lane
        self._at_once = at_once

    async def detect(self, context: Context) -> bytes:
        """Answer one frame.

        Raises:
            DecodeError, PolywandError
        """
        async with AsyncExitStack() as stack, AsyncExitStack() as until_paused:
            load = stack.enter_context(FrameLoad())
            data = await self._messages.frame(context, until_paused)
            with self._messages.body(len(data)):
                received = await receive_detect(data, self._lane)
                if isinstance(received, Refused):
                    raise received.error
                del data
                current().usage.frames += 1
                request, image, timer = received.message, received.image, tracing.call_timer()
                return await self._answer(request, image, timer, until_paused, load, image_stays=True)

    async def detect_stream(self, context: Context, end: Callable[[PolywandError], None]) -> None:
        """Answer frames in their order, as they come. end: ends the stream with an error. Raises DecodeError."""
        async with (
            FrameQueue[bytes](self._at_once) as queue,
            self._messages.writer(context, FRAMES_NOTICES, end) as writer,
        ):
            reader = asyncio.create_task(self._read(context, queue, writer.drain), name="read frames")
            try:
                async with aclosing(queue.results()) as results:
                    async for data in results:
                        await writer.write(data)
                await reader
            finally:
                await cancel(reader)

    async def _read(self, context: Context, queue: FrameQueue[bytes], drain: Drain) -> None:
        try:
            async with aclosing(self._messages.of_frames(context, drain, queue.idle_seconds)) as messages:
                async for message in messages:
                    timer = tracing.timer()
                    current().usage.frames += 1
                    with FrameLoad():
                        await queue.wait_for_capacity()
                    nbytes = len(message[0])
                    received = await receive_frame(message.pop(), self._lane)
                    await queue.put(self._answer_in_stream(received, nbytes, timer))
                    del received
        except Exception:
            await queue.finish()
            raise
        await queue.finish()

    async def _answer_in_stream(
        self, received: Received[pb.DetectStreamRequest] | Refused, nbytes: int, timer: Stopwatch
    ) -> bytes:
        """nbytes: of the whole message."""
        if isinstance(received, Refused):
            current().usage.errors += 1
            return write_frame(received.number, received.error)
        frame = received.message
        response: bytes | PolywandError
        try:
            with self._messages.body(nbytes), FrameLoad() as load:
                # Frames are seen once: a stream of them would flush what annotators will open again.
                answer = self._answer(frame.request, received.image, timer, AsyncExitStack(), load, image_stays=False)
                response = await or_error(answer)
        except PolywandError as error:
            response = error
        current().usage.errors += isinstance(response, PolywandError)
        return write_frame(frame.frame_id, response)

    async def _answer(
        self,
        request: pb.DetectRequest,
        image: memoryview | None,
        timer: Stopwatch,
        until_paused: AsyncExitStack,
        load: FrameLoad,
        *,
        image_stays: bool,
    ) -> bytes:
        """until_paused, load, image_stays: see `Frames.detect`."""
        try:
            options = await self._lane.compute_if(not is_small(request.ByteSize()), lambda: read_detect(request))
            self._frames.check(options)  # before the image is looked at
            source = read_image(request.image, image, "image")
        except PolywandError:
            self._frames.count_refused(timer)
            raise
        result = await self._frames.detect(source, options, timer, until_paused, load, image_stays=image_stays)
        has_outlines = result.outlines is not None
        return await self._lane.compute_if(has_outlines, lambda: write_detections(result, timer))

"""Detection on a stream of frames, for the asyncio client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TypeAlias, cast

import grpc

from polywand import errors, frames, wire
from polywand.errors import PolywandError
from polywand.frames import FRAMES_AHEAD, LARGE_FRAME_BYTES, FrameAnswer, FrameLog
from polywand.images import ImageLike
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DetectStreamRequest, pb.DetectStreamResponse]"


class DetectStream:
    """One call of DetectStream: one task reads frames, one reads replies, the caller's consumes answers.

    Every frame has one of `FRAMES_AHEAD` permits from before it is read until its answer is consumed: this bounds all
    queues.
    """

    def __init__(
        self,
        stub: "pb_grpc.AnnotationServiceAsyncStub",
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        options: pb.DetectRequest,
        detect_alone: Callable[[pb.DetectRequest], Awaitable[Detections]],
        target: str,
        timeout_s: float,
    ) -> None:
        self._stub, self._images, self._options = stub, images, options
        self._detect_alone = detect_alone
        self._target, self._timeout_s = target, timeout_s
        self._log = FrameLog()
        self._permits = asyncio.Semaphore(FRAMES_AHEAD)
        self._answers: asyncio.Queue[FrameAnswer | PolywandError | None] = asyncio.Queue()
        self._images_error: Exception | None = None

    async def answers(self) -> AsyncGenerator[FrameAnswer, None]:
        """Run the call and yield its answers in the order of the frames."""
        call = self._stub.DetectStream(None)
        tasks = [asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call))]
        try:
            while (answer := await self._next()) is not None:
                for due in self._log.put(*answer):
                    yield due
                    self._permits.release()
            if self._images_error is not None:
                raise self._images_error
            if self._log.any_open:
                raise errors.ended(self._target)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> FrameAnswer | None:
        while (left_s := self._log.seconds_left(self._timeout_s)) > 0:
            try:
                answer = await asyncio.wait_for(self._answers.get(), left_s)
            except TimeoutError:
                continue  # the timeout is over, unless the oldest open frame is newer than this wait
            if isinstance(answer, PolywandError):
                raise answer
            return answer
        raise errors.no_answer(self._target, self._timeout_s)

    async def _write(self, call: Call) -> None:
        async with aclosing(self._requests()) as requests:
            try:
                async for request in requests:
                    await call.write(request)
                await call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the call has ended, and its reader knows why

    async def _requests(self) -> AsyncGenerator[pb.DetectStreamRequest, None]:
        images = _as_async(self._images)
        try:
            while await self._permits.acquire():
                image = await anext(images)
                if (request := await self._request(image)) is not None:
                    yield request
        except StopAsyncIteration:
            return
        except Exception as error:
            self._images_error = error  # the caller's own, raised after the answers to the frames before

    async def _request(self, image: ImageLike) -> pb.DetectStreamRequest | None:
        frame_id = self._log.add()
        try:
            request = await asyncio.to_thread(wire.detect_request, image, self._options)
            if request.ByteSize() < LARGE_FRAME_BYTES:
                return pb.DetectStreamRequest(frame_id=frame_id, request=request)
            self._answers.put_nowait((frame_id, await self._detect_alone(request)))
        except PolywandError as error:
            self._answers.put_nowait((frame_id, error))
        return None

    async def _read(self, call: Call) -> None:
        try:
            async for reply in call:
                self._answers.put_nowait(frames.answer(reply))
        except PolywandError as error:
            self._answers.put_nowait(error)
        except grpc.aio.AioRpcError as error:
            self._answers.put_nowait(errors.from_rpc(error, self._target))
        except asyncio.CancelledError:  # the caller stopped, or the client was closed
            self._answers.put_nowait(errors.client_closed())
        else:
            self._answers.put_nowait(None)


async def _as_async(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    iterator, end = iter(images), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield cast(ImageLike, item)

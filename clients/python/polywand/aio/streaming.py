"""Detection on a stream of frames, for the asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import cast

import grpc

from polywand import errors, wire
from polywand.aio.changes import Changes
from polywand.errors import PolywandError
from polywand.frames import LARGE_FRAME_BYTES, FrameLog, FrameResult
from polywand.images import ImageLike
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc


class DetectStream:
    """One `detect_stream`: a task reads the caller's frames, another the replies of one call after another.

    The caller's own task consumes the answers. How far the frames are read ahead (`FrameLog.has_room`) bounds all.
    """

    def __init__(
        self,
        stub: pb_grpc.AnnotationServiceAsyncStub,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        options: pb.DetectRequest,
        detect_alone: Callable[[pb.DetectRequest], Awaitable[Detections]],
        target: str,
        timeout_s: float,
        *,
        reconnect: bool = True,
    ) -> None:
        self._stub, self._images, self._options = stub, images, options
        self._detect_alone = detect_alone
        self._target = target
        self._log = FrameLog(timeout_s, reconnects=reconnect)
        self._changes = Changes()  # of the log
        self._images_error: Exception | None = None

    async def answers(self) -> AsyncGenerator[FrameResult, None]:
        """Run the calls and yield their answers in the order of the frames."""
        tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._run())]
        try:
            while (result := await self._next()) is not None:
                yield result
                self._log.consumed()
                self._changes.notify()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> FrameResult | None:
        while (result := self._log.pop_result()) is None:
            if not self._log.any_open:
                if self._images_error is not None:
                    raise self._images_error
                return None
            if self._log.ended is not None:
                raise self._log.ended
            if (left_s := self._log.seconds_left()) <= 0:
                raise self._log.timeout(self._target)
            await self._changes.wait(left_s)
        return result

    async def _feed(self) -> None:
        """Read frames. An error of the caller's iterator is kept for the caller's task."""
        images = _as_async(self._images)
        try:
            while True:
                while not self._log.has_room:
                    await self._changes.wait(None)
                await self._add(await anext(images))
        except StopAsyncIteration:
            pass
        except Exception as error:
            self._images_error = error
        finally:
            self._log.complete()
            self._changes.notify()

    async def _add(self, image: ImageLike) -> None:
        number = self._log.add()
        try:
            request = await asyncio.to_thread(wire.detect_request, image, self._options)
            if request.ByteSize() < LARGE_FRAME_BYTES:
                self._log.send(number, request)
            else:
                self._log.put(number, await self._detect_alone(request))
        except PolywandError as error:
            self._log.put(number, error)
        self._changes.notify()

    async def _run(self) -> None:
        while self._log.any_open and self._log.ended is None:
            if (due_s := self._log.stream_due_s()) == 0:
                await self._read(self._log.begin())
            else:
                await self._changes.wait(due_s)

    async def _requests(self, stream: int) -> AsyncIterator[pb.DetectStreamRequest]:
        """Yield the frames to send on a call; the end half-closes it."""
        while self._log.is_sending(stream):
            if (request := self._log.pop(stream)) is not None:
                yield request
            else:
                await self._changes.wait(None)

    async def _read(self, stream: int) -> None:
        end: PolywandError = errors.ended(self._target)
        is_final = True  # after an unexpected exception
        call = self._stub.DetectStream(self._requests(stream))
        try:
            async for reply in call:
                self._log.answer(reply, stream)
                self._changes.notify()
            is_final = False
        except grpc.aio.AioRpcError as error:
            end = errors.from_rpc(error, self._target)
            is_final = errors.is_final(error, end)
        except asyncio.CancelledError:  # the caller stopped, or the client was closed
            end = errors.client_closed()
        finally:
            call.cancel()
            self._log.lost(stream, end, is_final=is_final)
            self._changes.notify()


async def _as_async(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    iterator, end = iter(images), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield cast(ImageLike, item)

"""The contract's four methods."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc as pb_grpc
from polywand_server import metrics
from polywand_server.detectors.outlines import Outliner, find_outliner, outline
from polywand_server.detectors.pipeline import DetectOptions, detect
from polywand_server.errors import InvalidInputError, PolywandError, or_error
from polywand_server.images import Picture
from polywand_server.inference import Inference
from polywand_server.interactors.prompt import Box
from polywand_server.registry import Detector
from polywand_server.rpc.replies import DRAINING_TEXT, write_detections, write_model, write_reply
from polywand_server.rpc.requests import read_detect, read_image, read_prompt
from polywand_server.rpc.status import UNDECODABLE, abort, to_status
from polywand_server.session import Session, Workplace
from polywand_server.timing import Stopwatch

Request = TypeVar("Request")

# Generic for the type checker only.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AnnotationServicer(pb_grpc.AnnotationServiceServicer):
    """Serves the contract. After `drain`, streams answer what they took, say goodbye and end.

    place: of the sessions. frames: what detection runs on.
    """

    def __init__(self, place: Workplace, frames: Inference) -> None:
        self._place = place
        self._frames = frames
        self._frame_places = asyncio.Semaphore(place.limits.frames_in_work)
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take no more messages from streams, and end them in order."""
        self._draining.set()

    async def ListModels(  # noqa: N802 (the contract's name)
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        """List all tools."""
        return pb.ListModelsResponse(models=[write_model(tool) for tool in self._place.registry.tools])

    async def Detect(  # noqa: N802 (the contract's name)
        self, request: pb.DetectRequest, context: _Context
    ) -> pb.DetectResponse:
        """Detect on one image."""
        response = await or_error(self._detect(request, Stopwatch()))
        if isinstance(response, PolywandError):
            await abort(context, response)
        return response

    async def Interact(  # noqa: N802 (the contract's name)
        self, request_iterator: AsyncIterator[pb.InteractRequest], context: _Context
    ) -> AsyncIterator[pb.InteractResponse]:
        """Answer one annotator's stream."""
        async with Session(self._place) as session:
            reader = asyncio.create_task(self._read_session(request_iterator, session), name="read a stream")
            try:
                async for reply in session.replies():
                    yield write_reply(reply)
                await _ended(reader, context)
            finally:
                await _cancel(reader)

    async def DetectStream(  # noqa: N802 (the contract's name)
        self, request_iterator: AsyncIterator[pb.DetectStreamRequest], context: _Context
    ) -> AsyncIterator[pb.DetectStreamResponse]:
        """Detect on frames as they come."""
        frames: asyncio.Queue[asyncio.Task[pb.DetectStreamResponse] | None]
        frames = asyncio.Queue(self._place.limits.frames_in_flight)
        reader = asyncio.create_task(self._read_frames(request_iterator, frames), name="read frames")
        try:
            while (task := await frames.get()) is not None:
                yield await task
            if self._draining.is_set():
                yield pb.DetectStreamResponse(draining=pb.Draining(message=DRAINING_TEXT))
            await _ended(reader, context)
        finally:
            await _cancel(reader)
            while not frames.empty():
                task = frames.get_nowait()
                if task is not None:
                    await _cancel(task)

    async def _read_session(self, requests: AsyncIterator[pb.InteractRequest], session: Session) -> None:
        try:
            await self._read_messages(requests, session)
        except Exception:
            # Whatever it was: what was taken is answered, and then the stream ends with the error.
            await session.finish(draining=False)
            raise
        await session.finish(draining=self._draining.is_set())

    async def _read_messages(self, requests: AsyncIterator[pb.InteractRequest], session: Session) -> None:
        async for request in self._until_drained(requests):
            watch = Stopwatch()
            kind = request.WhichOneof("message")
            try:
                if kind == "image":
                    await session.set_image(request.sequence, read_image(request.image, "image"), watch)
                elif kind == "prompt":
                    await session.submit(request.sequence, read_prompt(request.prompt), watch)
                else:
                    raise InvalidInputError("message", "a request needs an image or a prompt")
            except PolywandError as error:
                if kind == "prompt":
                    await session.refuse_prompt(
                        request.sequence, request.prompt.object_id, request.prompt.model, error, watch
                    )
                else:
                    await session.refuse(request.sequence, error, watch)

    async def _read_frames(
        self,
        requests: AsyncIterator[pb.DetectStreamRequest],
        frames: asyncio.Queue[asyncio.Task[pb.DetectStreamResponse] | None],
    ) -> None:
        places = asyncio.Semaphore(self._place.limits.frames_in_flight)
        try:
            async for request in self._until_drained(requests):
                watch = Stopwatch()
                await places.acquire()
                task = asyncio.create_task(self._answer_frame(request, watch), name="answer a frame")
                task.add_done_callback(lambda _: places.release())
                try:
                    await frames.put(task)
                except asyncio.CancelledError:
                    await _cancel(task)
                    raise
        except Exception:
            await frames.put(None)
            raise
        await frames.put(None)

    async def _answer_frame(self, frame: pb.DetectStreamRequest, watch: Stopwatch) -> pb.DetectStreamResponse:
        response = await or_error(self._detect(frame.request, watch))
        if isinstance(response, PolywandError):
            return pb.DetectStreamResponse(frame_id=frame.frame_id, error=to_status(response))
        return pb.DetectStreamResponse(frame_id=frame.frame_id, response=response)

    async def _detect(self, request: pb.DetectRequest, watch: Stopwatch) -> pb.DetectResponse:
        model, outcome = metrics.UNKNOWN_MODEL, "error"
        try:
            options = read_detect(request)
            tool, _ = self._choose(options)  # what cannot be is refused before anything waits for it
            model = tool.name
            source = read_image(request.image, "image")
            async with self._frame_places:
                watch.waited()
                await self._frames.turn(watch)
                picture = await self._place.decoder.decode(source, watch)
                response = await self._place.registry.with_tool(
                    lambda: self._choose(options), lambda chosen: self._look(chosen, picture, options, watch)
                )
            outcome = "ok"
            return response
        finally:
            metrics.FRAMES.labels(model, outcome).inc()
            metrics.observe_stages(watch, model)

    def _choose(self, options: DetectOptions) -> tuple[Detector, Outliner | None]:
        registry = self._place.registry
        tool = registry.detector(options.model, options.version)
        return tool, find_outliner(registry, options.polygons) if options.polygons else None

    async def _look(
        self, chosen: tuple[Detector, Outliner | None], picture: Picture, options: DetectOptions, watch: Stopwatch
    ) -> pb.DetectResponse:
        tool, outliner = chosen
        found = await detect(self._frames, tool, picture, options, watch)
        boxes = [Box(*item.box) for item in found]
        outlines = await outline(self._frames, outliner, picture, boxes, watch) if outliner else None
        return write_detections(found, outlines, picture, tool, watch)

    async def _until_drained(self, requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
        """Yield requests until the client has no more or the server drains."""
        drained = asyncio.create_task(self._draining.wait(), name="wait for the drain")
        coming: asyncio.Future[Request] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(requests))
                await asyncio.wait((coming, drained), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                try:
                    request = coming.result()
                except StopAsyncIteration:
                    return
                yield request
        finally:
            await _cancel(drained)
            if coming is not None:
                await _cancel(coming)


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    # Awaiting the task itself could not tell its cancellation from that of whoever waits here, which has to go on.
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # seen, and of no interest any more


async def _ended(reader: asyncio.Task[None], context: _Context) -> None:
    try:
        await reader
    except DecodeError:
        await abort(context, InvalidInputError("message", UNDECODABLE))

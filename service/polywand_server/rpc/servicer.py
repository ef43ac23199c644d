"""The contract's four methods, from bytes to bytes: each message is read when there is room for it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc as pb_grpc
from polywand_server.admission.bodies import FRAMES, Admission
from polywand_server.detectors.outlines import Outliner, find_outliner, outline
from polywand_server.detectors.pipeline import DetectOptions, check_labels, detect
from polywand_server.detectors.places import Place, Places
from polywand_server.errors import DeadlineError, InvalidInputError, PolywandError, QuotaError, or_error
from polywand_server.images import Picture
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.prompt import Box, Prompt
from polywand_server.lanes import Lane
from polywand_server.ops import metrics
from polywand_server.requester import current
from polywand_server.rpc import wire
from polywand_server.rpc.endings import Ending
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.intake import Received, Refused, receive
from polywand_server.rpc.replies import DRAINING_TEXT, write_detections, write_frame, write_model, write_reply
from polywand_server.rpc.requests import read_detect, read_image, read_prompt, short_names
from polywand_server.rpc.status import UNDECODABLE, abort
from polywand_server.session.answers import Reply
from polywand_server.session.stream import Session, Workplace
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Detector
from polywand_server.tools.retry import use_tool

# Replies that are larger are written in a thread.
SMALL_REPLY_BYTES = 64 * 1024
RETRY_SECONDS = 1.0
# How long the message of a unary call may take to come, once there is room for it.
RECEIVE_SECONDS = 60.0

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
# Generic for the type checker only.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class FrameWork:
    """What detection runs on: its threads and its way to Triton, its drawing, and places for frames in work."""

    lane: Lane
    drawer: Drawer
    places: Places


class AnnotationServicer(pb_grpc.AnnotationServiceServicer):
    """Serves the contract. After `drain`, streams answer what they took, say goodbye and end.

    place: of the sessions. frames: what detection runs on. Every method takes the call's context (see `interceptors`),
    reads messages from it, and returns or writes bytes; a stream may be ended from elsewhere.
    """

    def __init__(self, place: Workplace, frames: FrameWork, admission: Admission, ingress: Ingress) -> None:
        self._place = place
        self._frames = frames
        self._admission = admission
        self._ingress = ingress
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take no more messages from streams, and end them in order."""
        self._draining.set()

    async def ListModels(self, context: _Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """List all tools."""
        try:
            pb.ListModelsRequest.FromString(await _read_one(context))
        except DecodeError:
            await _abort_undecodable(context)
        except PolywandError as error:
            await abort(context, error)
        tools = self._place.registry.tools
        return pb.ListModelsResponse(models=[write_model(tool) for tool in tools]).SerializeToString()

    async def Detect(self, context: _Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """Detect on one image."""
        try:
            async with AsyncExitStack() as until_paused:
                await until_paused.enter_async_context(self._admission.calls.turn())
                expected = await self._admission.pace.pause(FRAMES)
                data = await self._admission.one_by_one(lambda: _read_one(context))
                self._note(FRAMES, len(data), expected)
                with self._admission.body(len(data)):
                    received = await receive(data, pb.DetectRequest, wire.DETECT, self._frames.lane)
                    if isinstance(received, Refused):
                        raise received.error
                    del data
                    detecting = self._detect(received.message, received.image, Stopwatch(), until_paused)
                    response = await or_error(detecting)
        except DecodeError:
            await _abort_undecodable(context)
        except PolywandError as error:
            response = error
        if isinstance(response, PolywandError):
            await abort(context, response)
        return response

    async def Interact(  # type: ignore[override]  # noqa: N802 (contract's name)
        self, context: _Context, end: Ending
    ) -> None:
        """Answer one annotator's stream."""

        def overflow() -> None:
            text = "the replies of this stream are not read, and too many wait: read them, or ask for fewer"
            end(QuotaError("replies that wait", text, RETRY_SECONDS))

        async with Session(self._place, overflow) as session:
            await self._interact(session, context)

    async def _interact(self, session: Session, context: _Context) -> None:
        reader = asyncio.create_task(self._read_session(context, session), name="read a stream")
        try:
            async with aclosing(session.replies()) as replies:
                async for reply in replies:
                    await context.write(await self._written(reply))
            await _ended(reader, context)
        finally:
            await _cancel(reader)

    async def _written(self, reply: Reply) -> bytes:
        if reply.nbytes <= SMALL_REPLY_BYTES:
            return write_reply(reply)
        return await self._place.lane.compute(lambda: write_reply(reply))

    async def DetectStream(  # type: ignore[override]  # noqa: N802 (contract's name)
        self, context: _Context, _: Ending
    ) -> None:
        """Detect on frames as they come."""
        frames: asyncio.Queue[asyncio.Task[bytes] | None]
        frames = asyncio.Queue(self._place.limits.frames_in_flight)
        reader = asyncio.create_task(self._read_frames(context, frames), name="read frames")
        try:
            while (task := await frames.get()) is not None:
                await context.write(await task)
            if self._draining.is_set():
                goodbye = pb.DetectStreamResponse(draining=pb.Draining(message=DRAINING_TEXT))
                await context.write(goodbye.SerializeToString())
            await _ended(reader, context)
        finally:
            await _cancel(reader)
            while not frames.empty():
                task = frames.get_nowait()
                if task is not None:
                    await _cancel(task)

    async def _read_session(self, context: _Context, session: Session) -> None:
        try:
            async with aclosing(self._until_drained(context, current().client)) as messages:
                async for message in messages:
                    await self._take(message.pop(), session)
        except Exception:
            # Whatever it was: what was taken is answered, and then the stream ends with the error.
            await session.finish(draining=False)
            raise
        await session.finish(draining=self._draining.is_set())

    async def _take(self, data: bytes, session: Session) -> None:
        """Have one message of an Interact stream answered."""
        watch = Stopwatch()
        received = await receive(data, pb.InteractRequest, wire.INTERACT, self._place.lane)
        if isinstance(received, Refused):
            await session.refuse(received.number, received.error, watch)
            return
        nbytes = len(data)
        del data  # an image is held by what it was received as, and no longer than that
        request = received.message
        kind = request.WhichOneof("message")
        try:
            if kind == "image":
                with self._admission.body(nbytes):
                    source = read_image(request.image, received.image, "image")
                    del received
                    await session.set_image(request.sequence, source, watch)
            elif kind == "prompt":
                await session.submit(request.sequence, await self._prompt(request.prompt, nbytes), watch)
            else:
                raise InvalidInputError("message", "a request needs an image or a prompt")
        except PolywandError as error:
            if kind == "prompt":
                object_id, model = short_names(request.prompt)
                await session.refuse_prompt(request.sequence, object_id, model, error, watch)
            else:
                await session.refuse(request.sequence, error, watch)

    async def _prompt(self, prompt: pb.Prompt, nbytes: int) -> Prompt:
        """Read a prompt; a large one in a thread."""
        if nbytes <= wire.SMALL_BYTES:
            return read_prompt(prompt)
        return await self._place.lane.compute(lambda: read_prompt(prompt))

    async def _read_frames(self, context: _Context, frames: "asyncio.Queue[asyncio.Task[bytes] | None]") -> None:
        places = asyncio.Semaphore(self._place.limits.frames_in_flight)
        try:
            async with aclosing(self._until_drained(context, FRAMES)) as messages:
                async for message in messages:
                    watch = Stopwatch()
                    await places.acquire()
                    nbytes = len(message[0])
                    received = await receive(
                        message.pop(), pb.DetectStreamRequest, wire.DETECT_STREAM, self._frames.lane
                    )
                    task = asyncio.create_task(self._answer_frame(received, nbytes, watch), name="answer a frame")
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

    async def _answer_frame(
        self, received: Received[pb.DetectStreamRequest] | Refused, nbytes: int, watch: Stopwatch
    ) -> bytes:
        """nbytes: of the whole message."""
        if isinstance(received, Refused):
            return write_frame(received.number, received.error)
        frame = received.message
        try:
            with self._admission.body(nbytes):
                response = await or_error(self._detect(frame.request, received.image, watch, AsyncExitStack()))
        except PolywandError as error:
            response = error
        return write_frame(frame.frame_id, response)

    async def _detect(
        self, request: pb.DetectRequest, image: memoryview | None, watch: Stopwatch, until_paused: AsyncExitStack
    ) -> bytes:
        """until_paused: see `Places.place`."""
        model, outcome = metrics.UNKNOWN_MODEL, "error"
        try:
            options = read_detect(request)
            tool, _ = self._choose(options)  # what cannot be is refused before anything waits for it
            model = tool.name
            source = read_image(request.image, image, "image")
            async with self._frames.places.place(until_paused) as place:
                watch.waited()
                await self._frames.lane.turn(watch)
                picture = await self._place.decoder.decode(source, watch)
                response = await use_tool(
                    self._place.registry,
                    lambda: self._choose(options),
                    lambda chosen: self._look(chosen, picture, options, watch, place),
                )
            outcome = "ok"
            return response
        finally:
            metrics.FRAMES.labels(model, outcome).inc()
            metrics.observe_stages(watch, model)

    def _choose(self, options: DetectOptions) -> tuple[Detector, Outliner | None]:
        registry = self._place.registry
        tool = registry.detector(options.model, options.version)
        check_labels(options.labels, tool)
        return tool, find_outliner(registry, options.polygons) if options.polygons else None

    async def _look(
        self,
        chosen: tuple[Detector, Outliner | None],
        picture: Picture,
        options: DetectOptions,
        watch: Stopwatch,
        place: Place,
    ) -> bytes:
        tool, outliner = chosen
        lane = self._frames.lane
        found = await detect(lane, tool, picture, options, watch)
        boxes = [Box(*item.box) for item in found]
        outlines = None
        if outliner is not None:
            outlines = await outline(lane, self._frames.drawer, outliner, picture, boxes, watch, place)
        if outlines is None:
            return write_detections(found, outlines, picture, tool, watch)
        return await lane.compute(lambda: write_detections(found, outlines, picture, tool, watch))

    def _note(self, payer: str, nbytes: int, expected: int) -> None:
        """Count a message that was handed over. expected: what `pause` has counted for it."""
        self._ingress.handed_over(nbytes)
        self._admission.pace.read(payer, nbytes, expected)

    async def _until_drained(self, context: _Context, payer: str) -> AsyncGenerator[list[bytes], None]:
        """Yield messages until the client has no more or the server drains; each in a list, from which it is taken, so
        that nothing here holds it while the next one is awaited.
        """
        drained = asyncio.create_task(self._draining.wait(), name="wait for the drain")
        coming: asyncio.Future[Any] | None = None
        try:
            while True:
                expected = await self._admission.pace.pause(payer)
                coming = asyncio.ensure_future(context.read())
                await asyncio.wait((coming, drained), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                message = [coming.result()]
                coming = None
                if message[0] is _EOF:
                    return
                self._note(payer, len(message[0]), expected)
                yield message
        finally:
            await _cancel(drained)
            if coming is not None:
                await _cancel(coming)


async def _read_one(context: _Context) -> bytes:
    """Read the only message of a unary call; a client that has sent none is taken to have sent an empty one."""
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            data = await context.read()
    except TimeoutError:
        raise DeadlineError(f"the message did not come within {RECEIVE_SECONDS:g} s") from None
    return b"" if data is _EOF else data


async def _abort_undecodable(context: _Context) -> NoReturn:
    await abort(context, InvalidInputError("message", UNDECODABLE))


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
        await _abort_undecodable(context)

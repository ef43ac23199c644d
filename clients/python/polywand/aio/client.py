"""The asyncio client."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from polywand import channel, checks, errors, wire
from polywand.aio.session import Session
from polywand.aio.streaming import DetectStream
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S, Backoff, retry_delay_s, system_uniform
from polywand.frames import FrameAnswer
from polywand.images import ImageLike, ValueRangeLike
from polywand.keywords import keywords_of
from polywand.results import Detections, Model
from polywand.wire import DetectOptions
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


def connect(
    target: str | None = None,
    *,
    timeout: float = channel.TIMEOUT_S,
    credentials: grpc.ChannelCredentials | None = None,
) -> "Client":
    """Make an asyncio client; see `polywand.connect` for the arguments and what it raises.

    It belongs to the event loop in which it is first used.
    """
    target, timeout = channel.resolve_target(target), channel.checked_timeout(timeout)
    return Client(target, timeout, channel.checked_credentials(credentials))


class Client:
    """A connection to a Polywand server; made by `connect`, closed by `async with` or `close`. Tasks may share it.

    Calls of a closed client, or of one inherited by a fork, raise Closed. Calls from an event loop other than the first
    raise RuntimeError.
    """

    def __init__(self, target: str, timeout_s: float, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        self._timeout_s, self._credentials = timeout_s, credentials
        self._channel: grpc.aio.Channel | None = None  # made in the event loop that uses it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._process = os.getpid()

    async def models(self) -> list[Model]:
        """List the tools that exist now, by name; retries as `detect` does. Raises Unavailable."""
        reply = await self._call(self._stub().ListModels, pb.ListModelsRequest(), FIRST_DELAY_S)
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike, *, value_range: ValueRangeLike | None = None) -> Session:
        """Open a session on an image: a path, a file's bytes, or uint8 [H, W, 3] RGB or [H, W] grey.

        The stream starts with `async with`, which raises InvalidRequest when the image cannot be read, QuotaExceeded
        when the server stays full, and Unavailable when it cannot be reached.
        """
        return Session(self._stub, image, self.target, self._timeout_s, value_range)

    @keywords_of(wire.detect_options, DetectOptions)
    async def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        While the server is full or Triton is unavailable, the request is sent again with growing delays, until the
        client's timeout. Raises InvalidRequest, QuotaExceeded, Unavailable or ServerError.
        """
        self._stub()
        template = wire.detect_options(**options)
        return await self._detect_alone(await asyncio.to_thread(wire.detect_request, image, template))

    @keywords_of(wire.detect_options, DetectOptions)
    def detect_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in order.

        images: read lazily, at most `FRAMES_AHEAD` before the answers are consumed; a plain iterable is read in a
        thread. An error of their iterator is raised here, after the answers to the images before it.
        A frame that fails yields (frame number, error), and the others go on; after QuotaExceeded and Unavailable the
        caller may send it again. Raises InvalidRequest at once when an option is wrong, and Unavailable or Draining
        when the whole stream fails: then send the frames without an answer again.
        """
        checks.frames(images)
        stream = DetectStream(
            self._stub(), images, wire.detect_options(**options), self._detect_alone, self.target, self._timeout_s
        )
        return stream.answers()

    async def close(self) -> None:
        """Close the connection, and with it all sessions."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _stub(self) -> "pb_grpc.AnnotationServiceAsyncStub":
        """Return the stub. Raises Closed, or RuntimeError in another event loop."""
        if self._closed:
            raise errors.client_closed()
        if os.getpid() != self._process:
            raise errors.Closed("This client was made in another process, before a fork: make one in this process.")
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop, options = loop, channel.options(self.target)
            self._channel = (
                grpc.aio.insecure_channel(self.target, options)
                if self._credentials is None
                else grpc.aio.secure_channel(self.target, self._credentials, options)
            )
        if loop is not self._loop:
            raise RuntimeError("this client belongs to another event loop: make one in this loop")
        return pb_grpc.AnnotationServiceStub(self._channel)

    async def _detect_alone(self, request: pb.DetectRequest) -> Detections:
        return wire.detections(await self._call(self._stub().Detect, request, FIRST_IMAGE_DELAY_S))

    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Reply]", request: _Request, first_delay_s: float
    ) -> _Reply:
        """Make a unary call, and retry it while that may help."""
        backoff = Backoff(time.monotonic() + self._timeout_s, first_delay_s, system_uniform())
        while True:
            self._stub()  # it may have been closed during the delay
            try:
                return await method(request, timeout=backoff.deadline - time.monotonic())
            except asyncio.CancelledError:
                if self._closed and not _is_cancelled():
                    raise errors.client_closed() from None
                raise
            except grpc.aio.AioRpcError as error:
                refusal = errors.from_rpc(error, self.target)
                delay_s = retry_delay_s(backoff, refusal, error)
                if delay_s is None:
                    raise refusal from error
            await asyncio.sleep(delay_s)


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled; closing a channel cancels only its calls."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

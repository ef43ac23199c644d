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
from polywand.frames import FrameAnswer
from polywand.images import ImageLike, ValueRangeLike
from polywand.keywords import keywords_of
from polywand.rests import FIRST_IMAGE_REST_S, FIRST_REST_S, Rests, before_again_s, system_uniform
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

    Calls of a closed client raise Closed, and so do those of one that was inherited by a fork. Calls from another event
    loop than the first one's raise RuntimeError.
    """

    def __init__(self, target: str, timeout_s: float, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        self._timeout_s, self._credentials = timeout_s, credentials
        self._channel: grpc.aio.Channel | None = None  # made in the loop that uses it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._process = os.getpid()

    async def models(self) -> list[Model]:
        """List the tools that exist now, by name; asks again as `detect` does. Raises Unavailable."""
        reply = await self._call(self._stub().ListModels, pb.ListModelsRequest(), FIRST_REST_S)
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike, *, value_range: ValueRangeLike | None = None) -> Session:
        """Open a session on an image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey.

        The stream starts with `async with`, which raises InvalidRequest when the image cannot be read, QuotaExceeded
        when the server stays full, and Unavailable when it is away.
        """
        return Session(self._stub, image, self.target, self._timeout_s, value_range)

    @keywords_of(wire.detect_options, DetectOptions)
    async def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        While the server is full or Triton is away, the request is sent again after rests that grow, until the client's
        timeout is over. Raises InvalidRequest, QuotaExceeded, Unavailable or ServerError.
        """
        self._stub()
        template = wire.detect_options(**options)
        return await self._detect_alone(await asyncio.to_thread(wire.detect_request, image, template))

    @keywords_of(wire.detect_options, DetectOptions)
    def detect_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in their order.

        images: read lazily, at most `FRAMES_AHEAD` before the answers are taken; a plain iterable is read in a thread.
        What it raises is raised here, after the answers to the frames before.
        A frame that fails yields (frame number, error), and the others go on: QuotaExceeded and Unavailable are for the
        caller to send again. Raises InvalidRequest at once when an option is wrong, and Unavailable or Draining when
        the whole stream fails: frames without an answer are to be sent again.
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
        """Make sure that calls can be made here and now."""
        if self._closed:
            raise errors.client_closed()
        if os.getpid() != self._process:
            raise errors.Closed("This client was made in another process, before a fork: connect in this one.")
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop, options = loop, channel.options(self.target)
            self._channel = (
                grpc.aio.insecure_channel(self.target, options)
                if self._credentials is None
                else grpc.aio.secure_channel(self.target, self._credentials, options)
            )
        if loop is not self._loop:
            raise RuntimeError("this client belongs to another event loop: connect in this one")
        return pb_grpc.AnnotationServiceStub(self._channel)

    async def _detect_alone(self, request: pb.DetectRequest) -> Detections:
        return wire.detections(await self._call(self._stub().Detect, request, FIRST_IMAGE_REST_S))

    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Reply]", request: _Request, first_rest_s: float
    ) -> _Reply:
        """Make a unary call, again and again while that is of use."""
        rests = Rests(time.monotonic() + self._timeout_s, first_rest_s, system_uniform())
        while True:
            self._stub()  # may have been closed during a rest
            try:
                return await method(request, timeout=rests.deadline - time.monotonic())
            except asyncio.CancelledError:
                if self._closed and not _is_cancelled():
                    raise errors.client_closed() from None
                raise
            except grpc.aio.AioRpcError as error:
                refusal = errors.from_rpc(error, self.target)
                rest_s = before_again_s(rests, refusal, error)
                if rest_s is None:
                    raise refusal from error
            await asyncio.sleep(rest_s)


def _is_cancelled() -> bool:
    """Whether the task that runs was told to stop; a channel that closes cancels its calls alone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

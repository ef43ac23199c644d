"""The asyncio client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from polywand import channel, errors, wire
from polywand.aio.session import Session
from polywand.aio.streaming import DetectStream
from polywand.frames import FrameAnswer
from polywand.images import ImageLike, ValueRangeLike
from polywand.rests import FIRST_IMAGE_REST_S, FIRST_REST_S, Rests, before_again_s, system_uniform
from polywand.results import Detections, Model
from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc as pb_grpc
from polywand.wire import DetectOptions

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


def connect(
    target: str | None = None,
    *,
    timeout: float = channel.TIMEOUT_S,
    credentials: grpc.ChannelCredentials | None = None,
) -> "Client":
    """Make an asyncio client, for use in the event loop that runs now; see `polywand.connect` for the arguments."""
    target = channel.resolve_target(target)
    if credentials is None:
        return Client(grpc.aio.insecure_channel(target, channel.CHANNEL_OPTIONS), target, timeout)
    return Client(grpc.aio.secure_channel(target, credentials, channel.CHANNEL_OPTIONS), target, timeout)


class Client:
    """A connection to a Polywand server; made by `connect`, closed by `async with` or `close`. Tasks may share it."""

    def __init__(self, grpc_channel: grpc.aio.Channel, target: str, timeout_s: float) -> None:
        self.target = target
        self._channel = grpc_channel
        self._stub: pb_grpc.AnnotationServiceAsyncStub = pb_grpc.AnnotationServiceStub(grpc_channel)
        self._timeout_s = timeout_s

    async def models(self) -> list[Model]:
        """List the tools that exist now, by name; asks again as `detect` does. Raises Unavailable."""
        reply = await self._call(self._stub.ListModels, pb.ListModelsRequest(), FIRST_REST_S)
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike, *, value_range: ValueRangeLike | None = None) -> Session:
        """Open a session on an image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey.

        value_range: which values of a PNG or TIFF file with more than 8 bits are black and white, such as (0, 1023).
        The stream starts with `async with`, which raises InvalidRequest when the image cannot be read, QuotaExceeded
        when the server stays full, and Unavailable when it is away.
        """
        return Session(self._stub, image, self.target, self._timeout_s, value_range)

    async def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        While the server is full or Triton is away, the request is sent again after rests that grow, until the client's
        timeout is over. Raises InvalidRequest, QuotaExceeded, Unavailable or ServerError.
        """
        request = await asyncio.to_thread(wire.detect_request, image, **options)
        return wire.detections(await self._call(self._stub.Detect, request, FIRST_IMAGE_REST_S))

    def detect_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in their order.

        images: read lazily, at most `FRAMES_AHEAD` before the answers are taken; a plain iterable is read in a thread.
        What it raises is raised here, after the answers to the frames before.
        A frame that fails yields (frame number, error), and the others go on: QuotaExceeded and Unavailable are for the
        caller to send again. Raises Unavailable or Draining when the whole stream fails: frames without an answer are
        to be sent again.
        """
        return DetectStream(self._stub, images, options, self.target, self._timeout_s).answers()

    async def close(self) -> None:
        """Close the connection, and with it all sessions."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Reply]", request: _Request, first_rest_s: float
    ) -> _Reply:
        """Make a unary call, again and again while that is of use."""
        rests = Rests(time.monotonic() + self._timeout_s, first_rest_s, system_uniform())
        while True:
            try:
                return await method(request, timeout=rests.deadline - time.monotonic())
            except grpc.aio.AioRpcError as error:
                refusal = errors.from_rpc(error, self.target)
                rest_s = before_again_s(rests, refusal, error)
                if rest_s is None:
                    raise refusal from error
            await asyncio.sleep(rest_s)

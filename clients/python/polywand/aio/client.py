"""The asyncio client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from types import TracebackType
from typing import Self, Unpack

import grpc

from polywand import channel, errors, wire
from polywand.aio.session import Session
from polywand.aio.streaming import DetectStream
from polywand.frames import FrameAnswer
from polywand.images import ImageLike
from polywand.results import Detections, Model
from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc as pb_grpc
from polywand.wire import DetectOptions


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
        """List the tools that exist now, by name. Raises Unavailable."""
        try:
            reply = await self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error, self.target) from error
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike) -> Session:
        """Open a session on an image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey.

        The stream starts with `async with`, which raises InvalidRequest when the image cannot be read, and Unavailable
        when the server is away.
        """
        return Session(self._stub, image, self.target, self._timeout_s)

    async def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        Raises InvalidRequest, Unavailable or ServerError.
        """
        request = await asyncio.to_thread(wire.detect_request, image, **options)
        try:
            return wire.detections(await self._stub.Detect(request, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error, self.target) from error

    def detect_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in their order.

        images: read lazily, at most `FRAMES_AHEAD` before the answers are taken; a plain iterable is read in a thread.
        What it raises is raised here, after the answers to the frames before.
        A frame that fails yields (frame number, error), and the others go on. Raises Unavailable or Draining when the
        whole stream fails: frames without an answer are to be sent again.
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

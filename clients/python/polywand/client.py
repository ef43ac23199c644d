"""The synchronous client."""

from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self, Unpack

import grpc

from polywand import channel, errors, wire
from polywand.frames import FrameAnswer
from polywand.images import ImageLike
from polywand.results import Detections, Model
from polywand.session import Session
from polywand.streaming import DetectStream
from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc as pb_grpc
from polywand.wire import DetectOptions


def connect(
    target: str | None = None,
    *,
    timeout: float = channel.TIMEOUT_S,
    credentials: grpc.ChannelCredentials | None = None,
) -> "Client":
    """Make a client. Nothing is sent before the first call, so a server may come up later.

    target: "host:port" or any gRPC target; None means the environment's POLYWAND_TARGET, else "localhost:50051".
    timeout: seconds to wait for any one answer, after which a call raises Unavailable.
    credentials: `grpc.ssl_channel_credentials(...)` for TLS, composed with call credentials for tokens; None is
    plain text.
    """
    target = channel.resolve_target(target)
    if credentials is None:
        return Client(grpc.insecure_channel(target, channel.CHANNEL_OPTIONS), target, timeout)
    return Client(grpc.secure_channel(target, credentials, channel.CHANNEL_OPTIONS), target, timeout)


class Client:
    """A connection to a Polywand server; made by `connect`, closed by `with` or `close`. Threads may share it."""

    def __init__(self, grpc_channel: grpc.Channel, target: str, timeout_s: float) -> None:
        self.target = target
        self._channel = grpc_channel
        self._stub = pb_grpc.AnnotationServiceStub(grpc_channel)
        self._timeout_s = timeout_s

    def models(self) -> list[Model]:
        """List the tools that exist now, by name. Raises Unavailable."""
        try:
            reply = self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise errors.from_rpc(error, self.target) from error
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike) -> Session:
        """Open a session on an image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey.

        Raises InvalidRequest when the image cannot be read, Unavailable when the server is away.
        """
        return Session(self._stub, image, self.target, self._timeout_s)

    def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        Raises InvalidRequest, Unavailable or ServerError.
        """
        request = wire.detect_request(image, **options)
        try:
            return wire.detections(self._stub.Detect(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise errors.from_rpc(error, self.target) from error

    def detect_stream(
        self, images: Iterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> Generator[FrameAnswer, None, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in their order.

        images: read lazily, by another thread and at most `FRAMES_AHEAD` before the answers are taken; what their
        iterator raises is raised here, after the answers to those before.
        A frame that fails yields (frame number, error), and the others go on. Raises Unavailable or Draining when the
        whole stream fails: frames without an answer are to be sent again.
        """
        return DetectStream(self._stub, images, options, self.target, self._timeout_s).answers()

    def close(self) -> None:
        """Close the connection, and with it all sessions."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""The synchronous client."""

import os
import threading
import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from polywand import channel, checks, errors, wire
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S, Backoff, retry_delay_s, system_uniform
from polywand.frames import FrameAnswer
from polywand.images import ImageLike, ValueRangeLike
from polywand.keywords import keywords_of
from polywand.results import Detections, Model
from polywand.session import Session
from polywand.streaming import DetectStream
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
    """Make a client. Nothing is sent before the first call, so the server may start later.

    target: "host:port" or any gRPC target; None means the environment variable POLYWAND_TARGET, else "localhost:50051".
    timeout: seconds to wait for any one answer, 0.001 to 1000000, after which a call raises Unavailable.
    credentials: `grpc.ssl_channel_credentials(...)` for TLS, composed with call credentials for tokens; None is
    plain text.
    Raises InvalidRequest when the target or the timeout is invalid.
    """
    target, timeout = channel.resolve_target(target), channel.checked_timeout(timeout)
    credentials = channel.checked_credentials(credentials)
    options = channel.options(target)
    if credentials is None:
        return Client(grpc.insecure_channel(target, options), target, timeout)
    return Client(grpc.secure_channel(target, credentials, options), target, timeout)


class Client:
    """A connection to a Polywand server; made by `connect`, closed by `with` or `close`. Threads may share it.

    Processes may not share it: each makes its own. Calls of a closed client, or of one inherited by a fork, raise
    Closed.
    """

    def __init__(self, grpc_channel: grpc.Channel, target: str, timeout_s: float) -> None:
        self.target = target
        self._channel = grpc_channel
        self._stub = pb_grpc.AnnotationServiceStub(grpc_channel)
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        self._process = os.getpid()

    def models(self) -> list[Model]:
        """List the tools that exist now, by name; retries as `detect` does. Raises Unavailable."""
        reply = self._call(self._stub.ListModels, pb.ListModelsRequest(), FIRST_DELAY_S)
        return [wire.model(message) for message in reply.models]

    def open(self, image: ImageLike, *, value_range: ValueRangeLike | None = None) -> Session:
        """Open a session on an image: a path, a file's bytes, or uint8 [H, W, 3] RGB or [H, W] grey.

        Raises InvalidRequest when the image cannot be read, QuotaExceeded when the server stays full, Unavailable when
        it cannot be reached.
        """
        self._check_open()
        return Session(self._stub, image, self.target, self._timeout_s, value_range)

    @keywords_of(wire.detect_options, DetectOptions)
    def detect(self, image: ImageLike, **options: Unpack[DetectOptions]) -> Detections:
        """Find objects on one image; the options are those of `DetectOptions`.

        While the server is full or Triton is unavailable, the request is sent again with growing delays, until the
        client's timeout. Raises InvalidRequest, QuotaExceeded, Unavailable or ServerError.
        """
        self._check_open()
        request = wire.detect_request(image, wire.detect_options(**options))
        return self._detect_alone(request)

    @keywords_of(wire.detect_options, DetectOptions)
    def detect_stream(
        self, images: Iterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> Generator[FrameAnswer, None, None]:
        """Find objects on many images, several at a time: yields (frame number, detections) in order.

        images: read lazily, by another thread, at most `FRAMES_AHEAD` before the answers are consumed; an error of
        their iterator is raised here, after the answers to the images before it.
        A frame that fails yields (frame number, error), and the others go on; after QuotaExceeded and Unavailable the
        caller may send it again. Raises InvalidRequest at once when an option is wrong, and Unavailable or Draining
        when the whole stream fails: then send the frames without an answer again.
        """
        self._check_open()
        checks.frames(images)
        stream = DetectStream(
            self._stub, images, wire.detect_options(**options), self._detect_alone, self.target, self._timeout_s
        )
        return stream.answers()

    def close(self) -> None:
        """Close the connection, and with it all sessions. A call that waits for its retry raises its last error."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _detect_alone(self, request: pb.DetectRequest) -> Detections:
        return wire.detections(self._call(self._stub.Detect, request, FIRST_IMAGE_DELAY_S))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise errors.client_closed()
        if os.getpid() != self._process:
            raise errors.Closed("This client was made in another process, before a fork: make one in this process.")

    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Reply]", request: _Request, first_delay_s: float
    ) -> _Reply:
        """Make a unary call, and retry it while that may help."""
        self._check_open()
        backoff = Backoff(time.monotonic() + self._timeout_s, first_delay_s, system_uniform())
        while True:
            try:
                return method(request, timeout=backoff.deadline - time.monotonic())
            except ValueError:
                self._check_open()  # closed by another thread; grpc raises ValueError then
                raise
            except grpc.RpcError as error:
                refusal = errors.from_rpc(error, self.target)
                delay_s = retry_delay_s(backoff, refusal, error)
                if delay_s is None or self._closed.wait(delay_s):
                    raise refusal from error

"""The synchronous client."""

from __future__ import annotations  # `help` shows the names of types, such as ImageLike

import logging
import os
import threading
import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self, TypeVar

import grpc

from polywand import channel as channels
from polywand import checks, errors, images, wire
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S, Backoff, retry_delay_s, system_uniform
from polywand.catalogue import Model, ServerInfo, read_model, read_server_info
from polywand.channel import Connection, MetadataLike
from polywand.errors import ImageNotHeld, PolywandError
from polywand.frames import FrameResult
from polywand.images import ImageLike, KnownImages, ValueRangeLike
from polywand.options import BoxLike, LabelsLike, detect_options
from polywand.results import Detections, SegmentResult
from polywand.segmenting import UNASKED_PROMPTS, PromptsLike, Segmenting, segment_options
from polywand.session import Session
from polywand.streaming import DetectStream
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

_log = logging.getLogger("polywand")

_Request = TypeVar("_Request")
_ImageRequest = TypeVar("_ImageRequest", pb.SegmentRequest, pb.DetectRequest)
_Reply = TypeVar("_Reply")
_ImageReply = TypeVar("_ImageReply", pb.SegmentResponse, pb.DetectResponse)


def connect(
    target: str | None = None,
    *,
    timeout: float = channels.TIMEOUT_S,
    credentials: grpc.ChannelCredentials | None = None,
    token: str | None = None,
    insecure_token: bool = False,
    metadata: MetadataLike = (),
    channel: grpc.Channel | None = None,
) -> Client:
    """Make a client. Nothing is sent before the first call, so the server may start later.

    target: "host:port" or any gRPC target; None means the environment variable POLYWAND_TARGET, else "localhost:50051".
    timeout: seconds to wait for any one answer, 0.001 to 1000000, after which a call raises Unavailable; calls have a
    `timeout` of their own, too.
    credentials: `grpc.ssl_channel_credentials(...)` for TLS; None is plain text.
    token: sent with every call as `authorization: Bearer TOKEN`. Without TLS, it is sent to this machine only, unless
    `insecure_token` is True: anyone on the way can read it.
    metadata: pairs of a key and a value to send with every call, such as {"x-project": "cars"}.
    channel: a gRPC channel of one's own, instead of target, credentials and token; `close` leaves it open.

    Calls that the server refuses for now are made again, with growing random delays, until their timeout. The logger
    "polywand" gets a line of level DEBUG for each call and of level INFO for each retry.
    Raises InvalidRequest when an argument is invalid.
    """
    connection = channels.connection(
        target,
        timeout=timeout,
        credentials=credentials,
        token=token,
        insecure_token=insecure_token,
        metadata=metadata,
        channel=channel,
    )
    return Client(connection, channels.checked_channel(channel, grpc.Channel))


class Client:
    """A connection to a Polywand server; made by `connect`, closed by `with` or `close`. Threads may share it.

    Processes may not share it: each makes its own. Calls of a closed client, or of one inherited by a fork, raise
    Closed. An image that the server has accepted once from this client is sent by its digest, 32 bytes, from then on.
    """

    def __init__(self, connection: Connection, channel: grpc.Channel | None = None) -> None:
        """Open a channel, or use the caller's own; `connect` checks the arguments."""
        self.target = connection.target
        self._owns_channel = channel is None
        self._channel = channel or _open(connection)
        self._stub: pb_grpc.AnnotationServiceStub = connection.prepared(pb_grpc.AnnotationServiceStub(self._channel))
        self._timeout_s = connection.timeout_s
        self._images = KnownImages()
        self._was_reached = False  # whether a server has ever answered: one that restarts is waited for
        self._most_prompts: int | None = None  # of one call of this server; None: not asked yet
        self._closed = threading.Event()
        self._process = os.getpid()

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Return what the server is: its version, its state, its limits, what it can read and write.

        timeout: seconds; None is the client's. Raises Unavailable.
        """
        reply = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), FIRST_DELAY_S, timeout)
        return read_server_info(reply)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """List the tools that exist now, by name.

        timeout: seconds for each page of 1000 tools; None is the client's. Raises Unavailable.
        """
        models: list[Model] = []
        request = pb.ListModelsRequest()
        while True:
            reply = self._call(self._stub.ListModels, request, FIRST_DELAY_S, timeout)
            models += map(read_model, reply.models)
            if not reply.next_page_token:
                return models
            request.page_token = reply.next_page_token

    def open(
        self,
        image: ImageLike,
        *,
        value_range: ValueRangeLike | None = None,
        timeout: float | None = None,
        reconnect: bool = True,
    ) -> Session:
        """Open a session on an image: clicks, each answered with the outline of an object.

        image: a path, a file's bytes, pixels, `Pixels` or an image of Pillow; see `ImageLike`.
        value_range: the values that are black and white in an image with more than 8 bits, such as (0, 1023); None:
        chosen from its values.
        timeout: seconds to wait for any one answer of the session; None is the client's.
        reconnect: whether the session goes on with a new stream when its server stops or is lost, and waits for one
        that is still starting; if not, the end of its stream ends it.
        Raises InvalidRequest when the image cannot be read, QuotaExceeded when the server stays full, Unavailable when
        it cannot be reached.
        """
        self._check_open()
        timeout_s = channels.call_timeout(timeout, self._timeout_s)
        reconnect = checks.flag("reconnect", reconnect)
        return Session(self._stub, image, self.target, timeout_s, value_range, known=self._images, reconnect=reconnect)

    def segment(
        self,
        image: ImageLike,
        prompts: PromptsLike,
        *,
        roi: BoxLike | None = None,
        model: str = "",
        version: int = 0,
        threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        polygons: bool = True,
        mask: bool = False,
        png: bool = False,
        value_range: ValueRangeLike | None = None,
        timeout: float | None = None,
    ) -> list[SegmentResult]:
        """Outline objects on one image, without a session: a result for each prompt, in their order.

        image: a path, a file's bytes, pixels, `Pixels` or an image of Pillow; see `ImageLike`.
        prompts: `Prompt` objects, or boxes of (x0, y0, x1, y1), such as an array [N, 4]. Many are cheaper together than
        one by one; more than 64 are sent in several calls.
        roi: a box (x0, y0, x1, y1): see only this part of the image, as if the rest did not exist; None is all of it.
        All coordinates stay those of the whole image.
        model: the interactor of prompts that name none; "" is the server's choice. version: of this model; 0 is the
        highest that is ready.
        threshold: probability from which a pixel counts, above 0 and below 1; None is the model's own.
        tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
        vertex, None is the server's choice.
        max_points: most vertices of one outline, over all its rings, 3 to 100000; None is no limit.
        polygons, mask, png: in which forms to send the outlines; their boxes are always sent.
        value_range: the values that are black and white in an image with more than 8 bits, such as (0, 1023); None:
        chosen from its values.
        timeout: seconds for each call; None is the client's.

        A prompt that fails has its error as its result, and does not stop the others. While the server is full or
        Triton is unavailable, a call is made again with growing delays, until its timeout. Raises InvalidRequest,
        QuotaExceeded, Unavailable or ServerError when all prompts fail together, as with an image that cannot be read;
        if some have their results already, the error is the result of all others.
        """
        self._check_open()
        template = segment_options(
            roi=roi,
            model=model,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
            polygons=polygons,
            mask=mask,
            png=png,
        )
        work = Segmenting(prompts, template)
        message = images.to_message(image, value_range)
        while work.left:
            try:
                request = work.request(self._prompt_limit(timeout) if work.left > UNASKED_PROMPTS else 0)
                work.add(self._call_with_image(self._stub.Segment, request, message, timeout))
            except PolywandError as error:
                work.fail(error)
        return work.results

    def detect(
        self,
        image: ImageLike,
        *,
        model: str = "",
        version: int = 0,
        threshold: float | None = None,
        labels: LabelsLike | None = None,
        max_detections: int | None = None,
        roi: BoxLike | None = None,
        polygons: bool = False,
        mask: bool = False,
        png: bool = False,
        interactor: str = "",
        interactor_version: int = 0,
        interactor_threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        value_range: ValueRangeLike | None = None,
        timeout: float | None = None,
    ) -> Detections:
        """Find objects on one image.

        image: a path, a file's bytes, pixels, `Pixels` or an image of Pillow; see `ImageLike`.
        model: a detector; "" is the server's choice. version: of this model; 0 is the highest that is ready.
        threshold: score from which a detection counts, 0 to 1; None is the model's own.
        labels: which to keep: a mapping from the model's labels to the task's, a list of the model's labels, or
        `LabelMapping` objects, which may have thresholds of their own. None keeps all.
        max_detections: most detections, best first, 1 to 1000; None is 100.
        roi: a box (x0, y0, x1, y1): detect in this part of the image only, as if the rest did not exist; None is all of
        it. All coordinates stay those of the whole image.
        polygons, mask, png: outline each detection too, from its box, and send the outlines in these forms.
        The options of these outlines, which raise InvalidRequest without an outline:
        interactor: an interactor that starts from a box; "" is the server's choice. interactor_version: of it; 0 is the
        highest that is ready. interactor_threshold: probability from which a pixel counts, above 0 and below 1; None is
        the interactor's own.
        tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
        vertex, None is the server's choice.
        max_points: most vertices of one outline, over all its rings, 3 to 100000; None is no limit.
        value_range: the values that are black and white in an image with more than 8 bits, such as (0, 1023); None:
        chosen from its values.
        timeout: seconds; None is the client's.

        While the server is full or Triton is unavailable, the call is made again with growing delays, until its
        timeout. Raises InvalidRequest, QuotaExceeded, Unavailable or ServerError.
        """
        self._check_open()
        options = detect_options(
            model=model,
            version=version,
            threshold=threshold,
            labels=labels,
            max_detections=max_detections,
            roi=roi,
            polygons=polygons,
            mask=mask,
            png=png,
            interactor=interactor,
            interactor_version=interactor_version,
            interactor_threshold=interactor_threshold,
            tolerance=tolerance,
            max_points=max_points,
        )
        message = images.to_message(image, value_range)
        return wire.detections(self._call_with_image(self._stub.Detect, options, message, timeout))

    def detect_stream(
        self,
        images: Iterable[ImageLike],
        *,
        model: str = "",
        version: int = 0,
        threshold: float | None = None,
        labels: LabelsLike | None = None,
        max_detections: int | None = None,
        roi: BoxLike | None = None,
        polygons: bool = False,
        mask: bool = False,
        png: bool = False,
        interactor: str = "",
        interactor_version: int = 0,
        interactor_threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        value_range: ValueRangeLike | None = None,
        timeout: float | None = None,
        reconnect: bool = True,
    ) -> Generator[FrameResult, None, None]:
        """Find objects on many images, several at a time: yields a `FrameResult` for each, in order.

        images: read lazily, by another thread, at most `FRAMES_AHEAD` before the answers are consumed; an error of
        their iterator is raised here, after the answers to the images before it.
        model: a detector; "" is the server's choice. version: of this model; 0 is the highest that is ready.
        threshold: score from which a detection counts, 0 to 1; None is the model's own.
        labels: which to keep: a mapping from the model's labels to the task's, a list of the model's labels, or
        `LabelMapping` objects, which may have thresholds of their own. None keeps all.
        max_detections: most detections on one image, best first, 1 to 1000; None is 100.
        roi: a box (x0, y0, x1, y1): detect in this part of each image only, as if the rest did not exist; None is all
        of it. All coordinates stay those of the whole image.
        polygons, mask, png: outline each detection too, from its box, and send the outlines in these forms.
        The options of these outlines, which raise InvalidRequest without an outline:
        interactor: an interactor that starts from a box; "" is the server's choice. interactor_version: of it; 0 is the
        highest that is ready. interactor_threshold: probability from which a pixel counts, above 0 and below 1; None is
        the interactor's own.
        tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
        vertex, None is the server's choice.
        max_points: most vertices of one outline, over all its rings, 3 to 100000; None is no limit.
        value_range: for all images: the values that are black and white in those with more than 8 bits, such as
        (0, 1023); None: chosen from the values of each.
        timeout: seconds to wait for any one answer; None is the client's.
        reconnect: if not, the first call's end raises Draining or Unavailable.

        A frame that fails yields its error, and the others go on; after QuotaExceeded and Unavailable the caller may
        send it again. When the server stops or is lost, the stream goes on with a new call, to any replica, and the
        frames without an answer are sent again: each is answered once. Raises InvalidRequest at once when an option is
        wrong, and Unavailable when no answer comes within the timeout.
        """
        self._check_open()
        checks.frames(images)
        reconnect = checks.flag("reconnect", reconnect)
        options = detect_options(
            model=model,
            version=version,
            threshold=threshold,
            labels=labels,
            max_detections=max_detections,
            roi=roi,
            polygons=polygons,
            mask=mask,
            png=png,
            interactor=interactor,
            interactor_version=interactor_version,
            interactor_threshold=interactor_threshold,
            tolerance=tolerance,
            max_points=max_points,
            value_range=value_range,
        )
        timeout_s = channels.call_timeout(timeout, self._timeout_s)

        def detect_alone(request: pb.DetectRequest) -> Detections:
            return wire.detections(self._call(self._stub.Detect, request, FIRST_IMAGE_DELAY_S, timeout_s))

        return DetectStream(
            self._stub, images, options, detect_alone, self.target, timeout_s, reconnect=reconnect
        ).answers()

    def close(self) -> None:
        """Close the connection, and with it all sessions. A call that waits for its retry raises its last error.

        A channel of the caller's own stays open, and so do sessions on it.
        """
        self._closed.set()
        if self._owns_channel:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise errors.client_closed()
        if os.getpid() != self._process:
            raise errors.Closed("This client was made in another process, before a fork: make one in this process.")

    def _prompt_limit(self, timeout: float | None) -> int:
        if self._most_prompts is None:
            self._most_prompts = self.server_info(timeout=timeout).limits.segment_prompts
        return self._most_prompts

    def _call_with_image(
        self,
        method: grpc.UnaryUnaryMultiCallable[_ImageRequest, _ImageReply],
        request: _ImageRequest,
        image: pb.Image,
        timeout: float | None,
    ) -> _ImageReply:
        """Make a unary call on an image: by its digest if the server may hold it, else with the image itself."""
        if (by_digest := self._images.by_digest(image)) is not None:
            request.image.CopyFrom(by_digest)
            try:
                return self._call(method, request, FIRST_DELAY_S, timeout)
            except ImageNotHeld:
                self._images.discard(by_digest)
        request.image.CopyFrom(image)
        reply = self._call(method, request, FIRST_IMAGE_DELAY_S, timeout)
        self._images.add(image, reply.image)
        return reply

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Reply],
        request: _Request,
        first_delay_s: float,
        timeout: float | None,
    ) -> _Reply:
        """Make a unary call, and make it again while that may help. timeout: seconds; None is the client's."""
        self._check_open()
        started = time.monotonic()
        deadline = started + channels.call_timeout(timeout, self._timeout_s)
        backoff = Backoff(deadline, first_delay_s, system_uniform())
        name = type(request).__name__.removesuffix("Request")
        while True:
            try:
                reply = method(request, timeout=backoff.deadline - time.monotonic())
            except ValueError:
                self._check_open()  # closed by another thread; grpc raises ValueError then
                raise
            except grpc.RpcError as error:
                refusal = errors.from_rpc(error, self.target)
                self._was_reached |= not errors.never_arrived(error)
                delay_s = retry_delay_s(backoff, refusal) if self._was_reached else None
                if delay_s is None:
                    _log.debug("%s at %s failed: %s", name, self.target, refusal)
                    raise refusal from error
                _log.info("%s at %s is made again in %.2f s: %s", name, self.target, delay_s, refusal)
                if self._closed.wait(delay_s):
                    raise refusal from error
            else:
                self._was_reached = True
                _log.debug("%s at %s: %.1f ms", name, self.target, 1000 * (time.monotonic() - started))
                return reply


def _open(connection: Connection) -> grpc.Channel:
    if connection.credentials is None:
        return grpc.insecure_channel(connection.target, connection.options)
    return grpc.secure_channel(connection.target, connection.credentials, connection.options)

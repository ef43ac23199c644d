"""What a server may answer, as messages, and a real gRPC server on a real socket that answers by script."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from polywand import images
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

QUOTA = ("images", "16 images at most")
THREADS = 8


def outline(sequence: int = 0) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, segmentation=pb.Segmentation(model="m"))


def ready(sequence: int = 0) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, image=pb.ImageInfo(width=4, height=3))


def refusal(
    sequence: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, retry_s: float | None = None
) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, error=status(code, "away", retry_s))


def full(sequence: int = 0, retry_s: float = 0.0) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, error=full_status(retry_s))


def given_up(sequence: int = 0) -> pb.InteractResponse:
    error = status(grpc.StatusCode.FAILED_PRECONDITION, "the image was given up")
    error.details.add().Pack(error_details_pb2.ErrorInfo(reason="IMAGE_GIVEN_UP", domain="polywand"))
    return pb.InteractResponse(sequence=sequence, error=error)


def not_held(sequence: int = 0) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, error=not_held_status())


def full_status(retry_s: float) -> status_pb2.Status:
    error = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server is full", retry_s)
    violation = error_details_pb2.QuotaFailure.Violation(subject=QUOTA[0], description=QUOTA[1])
    error.details.add().Pack(error_details_pb2.QuotaFailure(violations=[violation]))
    return error


def not_held_status() -> status_pb2.Status:
    error = status(grpc.StatusCode.NOT_FOUND, "the image is not held")
    error.details.add().Pack(error_details_pb2.ErrorInfo(reason="IMAGE_NOT_HELD", domain="polywand"))
    return error


def too_large_status() -> status_pb2.Status:
    error = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the image is too large")
    violation = error_details_pb2.BadRequest.FieldViolation(field="image.encoded", description="too large")
    error.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return error


def status(code: grpc.StatusCode, message: str, retry_s: float | None = None) -> status_pb2.Status:
    error = status_pb2.Status(code=code.value[0], message=message)
    if retry_s is not None:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromMicroseconds(round(retry_s * 1e6))
        error.details.add().Pack(delay)
    return error


@dataclass
class Script(pb_grpc.AnnotationServiceServicer):
    """What a server answers to each request, and what it was sent when.

    interact: from a stream's message to its reply, whose sequence and object are filled in; None is no reply.
    detect: from the count of the requests before this one to an error, or None for an empty answer.
    segment: from a request to its results, or to an error.
    info: the answer to GetServerInfo. pages: those of ListModels; the token of a page is its number.
    holds: which images a digest may name; others are IMAGE_NOT_HELD.
    arrivals: (monotonic seconds, message), of all calls. metadata: of the last call.
    """

    interact: Callable[[pb.InteractRequest], pb.InteractResponse | None] = lambda _: None
    detect: Callable[[int], status_pb2.Status | None] = lambda _: None
    segment: Callable[[pb.SegmentRequest], list[pb.SegmentResult] | status_pb2.Status] = lambda _: []
    info: pb.GetServerInfoResponse = field(default_factory=pb.GetServerInfoResponse)
    pages: list[list[str]] = field(default_factory=lambda: [[]])
    holds: set[bytes] = field(default_factory=set)
    arrivals: list[tuple[float, Any]] = field(default_factory=list)
    metadata: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str | None]:
        """Which messages came on streams: "image" or the prompt's object."""
        messages = [message for _, message in self.arrivals if isinstance(message, pb.InteractRequest)]
        return ["image" if message.HasField("image") else message.prompt.object_id for message in messages]

    @property
    def sources(self) -> list[str | None]:
        """How the images of unary calls came: "encoded", "raw" or "digest"."""
        unary = (pb.SegmentRequest, pb.DetectRequest)
        return [message.image.WhichOneof("source") for _, message in self.arrivals if isinstance(message, unary)]

    @property
    def sequences(self) -> list[int]:
        """The sequences of the messages of streams."""
        return [message.sequence for _, message in self.arrivals if isinstance(message, pb.InteractRequest)]

    def Interact(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.InteractRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.InteractResponse]:
        self.metadata = dict(context.invocation_metadata())
        for request in requests:
            self.arrivals.append((time.monotonic(), request))
            if (reply := self.interact(request)) is not None:
                reply.sequence, reply.object_id = request.sequence, request.prompt.object_id
                yield reply

    def Detect(self, request: pb.DetectRequest, context: grpc.ServicerContext) -> pb.DetectResponse:  # noqa: N802
        self._abort_by_script(request, context)
        return pb.DetectResponse(image=self._hold(request.image, context))

    def Segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:  # noqa: N802
        self._abort_by_script(request, context)
        results = self.segment(request)
        if isinstance(results, status_pb2.Status):
            context.abort_with_status(rpc_status.to_status(results))
        return pb.SegmentResponse(image=self._hold(request.image, context), results=results)

    def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        self._abort_by_script(request, context)
        return self.info

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        self._abort_by_script(request, context)
        page = int(request.page_token or 0)
        token = str(page + 1) if page + 1 < len(self.pages) else ""
        return pb.ListModelsResponse(models=[pb.Model(name=name) for name in self.pages[page]], next_page_token=token)

    def DetectStream(  # noqa: N802
        self, requests: Iterator[pb.DetectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DetectStreamResponse]:
        for request in requests:
            error = self.detect(len(self.arrivals))
            self.arrivals.append((time.monotonic(), request))
            if error is None:
                yield pb.DetectStreamResponse(frame_id=request.frame_id, response=pb.DetectResponse())
            else:
                yield pb.DetectStreamResponse(frame_id=request.frame_id, error=error)

    def _abort_by_script(self, request: object, context: grpc.ServicerContext) -> None:
        error = self.detect(len(self.arrivals))
        self.arrivals.append((time.monotonic(), request))
        self.metadata = dict(context.invocation_metadata())
        if error is not None:
            context.abort_with_status(rpc_status.to_status(error))

    def _hold(self, image: pb.Image, context: grpc.ServicerContext) -> pb.ImageInfo:
        """Return what a server says of an image, and hold it from now on."""
        if image.digest and image.digest not in self.holds:
            context.abort_with_status(rpc_status.to_status(not_held_status()))
        found = image.digest or images.digest(image)
        self.holds.add(found)
        return pb.ImageInfo(width=4, height=3, digest=found)


@contextmanager
def scripted_server(
    script: Script, credentials: grpc.ServerCredentials | None = None, address: str = "localhost:0"
) -> Iterator[str]:
    """Serve a script, and give the server's target. credentials: for TLS. address: of a server that restarts."""
    with ThreadPoolExecutor(THREADS) as threads:
        server = grpc.server(threads)
        pb_grpc.add_AnnotationServiceServicer_to_server(script, server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        try:
            yield f"localhost:{port}"
        finally:
            server.stop(None).wait()

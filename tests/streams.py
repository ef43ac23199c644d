"""An Interact stream as a client in any language would drive it, with deadlines, for the tests."""

import hashlib
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc

POSITIVE, NEGATIVE, EXTREME = pb.POINT_LABEL_POSITIVE, pb.POINT_LABEL_NEGATIVE, pb.POINT_LABEL_EXTREME
REPLY_SECONDS = 30.0

Message: TypeAlias = pb.Image | pb.Prompt | pb.Forget


def raw_image(pixels: NDArray[np.uint8]) -> pb.Image:
    """RGB uint8 [H, W, 3] as a raw image."""
    height, width = pixels.shape[:2]
    return pb.Image(raw=pb.RawImage(data=pixels.tobytes(), width=width, height=height, format=pb.PIXEL_FORMAT_RGB8))


def digest_of(image: pb.Image) -> bytes:
    """An image's digest, as the contract defines it: of a file's bytes, or of raw pixels with their format and size."""
    if image.HasField("encoded"):
        return hashlib.sha256(image.encoded).digest()
    raw = image.raw
    layout = pb.PixelFormat.Name(raw.format).removeprefix("PIXEL_FORMAT_")
    return hashlib.sha256(f"{layout} {raw.width} {raw.height}\n".encode() + raw.data).digest()


def prompt(
    model: str, *points: tuple[float, float, int], box=None, object_id="", version=0, mask=False, **output
) -> pb.Prompt:
    """A prompt from (x, y, label) points and an (x0, y0, x1, y1) box; mask: whether its answer has run lengths too."""
    message = pb.Prompt(model=model, object_id=object_id, version=version)
    for x, y, label in points:
        message.points.add(x=x, y=y, label=label)
    if box is not None:
        message.box.CopyFrom(pb.Box(x0=box[0], y0=box[1], x1=box[2], y1=box[3]))
    if mask:
        output["forms"] = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE]
    if output:
        message.output.CopyFrom(pb.OutputOptions(**output))
    return message


def receipt(timing: pb.Timing) -> int:
    """When a request was received: Unix time, microseconds, the service's clock."""
    return timing.receive_time.ToMicroseconds()


def departure(timing: pb.Timing) -> int:
    """When an answer was ready to leave: Unix time, microseconds, the service's clock.

    What happened before what is told by this clock: a client's threads read answers when they come to it.
    """
    return receipt(timing) + timing.total_us


def is_ready(listed: pb.Model | pb.ModelVersion) -> bool:
    """Whether a tool or a version of ListModels serves requests."""
    return listed.state == pb.MODEL_STATE_READY


class InteractStream:
    """Sends requests and receives replies; every wait ends. Use as a context manager: leaving cancels the stream.

    metadata: of the call.
    """

    def __init__(
        self, stub: annotation_pb2_grpc.AnnotationServiceStub, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._requests: queue.Queue[pb.InteractRequest | None] = queue.Queue()
        self._replies: queue.Queue[pb.InteractResponse | grpc.RpcError | None] = queue.Queue()
        self._sequence = 0
        self.call = stub.Interact(iter(self._requests.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "InteractStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self.call.cancel()
        self._reader.join(5)

    def _read(self) -> None:
        try:
            for reply in self.call:
                self._replies.put(reply)
            self._replies.put(None)
        except grpc.RpcError as error:
            self._replies.put(error)

    def send(self, message: Message, sequence: int | None = None) -> int:
        """Send a message under the next (or a given) sequence, which is returned."""
        self._sequence = self._sequence + 1 if sequence is None else sequence
        field = type(message).__name__.lower()
        self._requests.put(pb.InteractRequest(sequence=self._sequence, **{field: message}))
        return self._sequence

    def send_request(self, request: pb.InteractRequest) -> None:
        """Send a request as it is."""
        self._requests.put(request)

    def finish(self) -> None:
        """Send nothing more."""
        self._requests.put(None)

    def receive(self, seconds: float = REPLY_SECONDS) -> pb.InteractResponse:
        """Return the next reply; the stream's end or error fails the test."""
        reply = self._replies.get(timeout=seconds)
        if isinstance(reply, grpc.RpcError):
            raise AssertionError(f"the stream ended with {reply.code()}: {reply.details()}") from reply
        assert reply is not None, "the stream ended"
        return reply

    def pending(self) -> int:
        """How many replies have come and were not received yet."""
        return self._replies.qsize()

    def receive_end(self, seconds: float = REPLY_SECONDS) -> grpc.StatusCode:
        """Return the status with which the stream ends now."""
        reply = self._replies.get(timeout=seconds)
        assert not isinstance(reply, pb.InteractResponse), f"expected the end, got {reply}"
        return reply.code() if isinstance(reply, grpc.RpcError) else grpc.StatusCode.OK

    def ask(self, message: Message, seconds: float = REPLY_SECONDS) -> pb.InteractResponse:
        """Send a message and return the reply to it."""
        sequence = self.send(message)
        reply = self.receive(seconds)
        assert reply.sequence == sequence
        return reply

    def wait_until_read(self) -> None:
        """Wait until the service has read all that was sent; only while it answers nothing of that."""
        sequence = self.send(prompt("no such tool", object_id="behind all"))
        reply = self.receive()
        assert reply.sequence == sequence, reply

    def replies(self) -> Iterator[pb.InteractResponse]:
        """Yield replies until the stream's end."""
        while (reply := self._replies.get(timeout=REPLY_SECONDS)) is not None:
            assert isinstance(reply, pb.InteractResponse), reply
            yield reply


@contextmanager
def stream_to(target: str) -> Iterator[InteractStream]:
    """A stream on a connection of its own."""
    with (
        grpc.insecure_channel(target) as channel,
        InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as opened,
    ):
        yield opened

"""An annotator at Polywand: one Interact stream over the contract's generated stub, as any language would drive it."""

import time
from collections.abc import Sequence
from types import TracebackType

import grpc.aio

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.photos import Click, Photo
from tests.bench.player import Answer, deadline
from tests.streams import NEGATIVE, POSITIVE

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, as an annotator on another machine has
]


class Annotator:
    """One stream. Use as an async context manager: leaving cancels it and closes its connection.

    sequence: of the last message sent.
    """

    def __init__(self, target: str, model: str) -> None:
        self._model = model
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._call = annotation_pb2_grpc.AnnotationServiceStub(self._channel).Interact()
        self.sequence = 0

    async def __aenter__(self) -> "Annotator":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        await self._channel.close()

    async def open(self, photo: Photo) -> Answer:
        """Send a photo and wait until it is ready for prompts."""
        begin = time.perf_counter()
        request = self._request(image=pb.Image(encoded=photo.jpeg))
        return await self._ask(request, begin)

    async def click(self, object_id: str, clicks: Sequence[Click]) -> Answer:
        """Send an object's whole prompt and wait for its polygons."""
        begin = time.perf_counter()
        return await self._ask(self._request(prompt=self._prompt(object_id, clicks)), begin)

    async def undo(self, object_id: str, clicks: Sequence[Click]) -> Answer:
        """Send the prompt as it was."""
        return await self.click(object_id, clicks)

    async def send(self, object_id: str, clicks: Sequence[Click]) -> int:
        """Send a prompt without waiting for its answer; returns its sequence."""
        await self._call.write(self._request(prompt=self._prompt(object_id, clicks)))
        return self.sequence

    async def receive(self) -> pb.InteractResponse:
        """Return the next reply. RuntimeError: it is not what was asked for, or the stream ended."""
        async with deadline():
            reply = await self._call.read()
        if reply is grpc.aio.EOF:
            raise RuntimeError(f"the stream ended: {await self._call.code()}, {await self._call.details()}")
        if reply.WhichOneof("result") == "image" or reply.segmentation.shape.polygons:
            return reply
        raise RuntimeError(f"no polygons: {reply}")

    async def _ask(self, request: pb.InteractRequest, begin: float) -> Answer:
        await self._call.write(request)
        reply = await self.receive()
        wait_ms = (time.perf_counter() - begin) * 1000
        if reply.sequence != request.sequence:
            raise RuntimeError(f"asked {request.sequence}, was answered {reply.sequence}")
        return Answer(wait_ms, reply.timing.inferences, request.ByteSize(), reply.ByteSize(), reply.skipped)

    def _request(self, image: pb.Image | None = None, prompt: pb.Prompt | None = None) -> pb.InteractRequest:
        self.sequence += 1
        return pb.InteractRequest(sequence=self.sequence, image=image, prompt=prompt)

    def _prompt(self, object_id: str, clicks: Sequence[Click]) -> pb.Prompt:
        points = [pb.Point(x=at.x, y=at.y, label=POSITIVE if at.positive else NEGATIVE) for at in clicks]
        return pb.Prompt(model=self._model, object_id=object_id, points=points)

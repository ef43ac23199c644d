"""Clicks while others stream frames: one annotator, and streams that send as fast as flow control lets them."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count, cycle
from types import TracebackType

import grpc.aio
import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.annotator import CHANNEL_OPTIONS, Annotator
from tests.bench.photos import photos
from tests.bench.player import deadline
from tests.bench.samples import Samples
from tests.bench.servers import Servers

FRAME_MEGAPIXELS = 2
CLICKED_MEGAPIXELS = 2
THINK_SECONDS = 0.02
LONGEST = 3  # times the time that was given, for the sake of enough clicks
FLOWING_FRAMES = 8  # answered before the clicks begin


class FrameStream:
    """One DetectStream that never pauses. Use as an async context manager: leaving cancels it.

    answered: frames so far. flowing: set when the stream has got going.
    """

    def __init__(self, target: str, detector: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._call = annotation_pb2_grpc.AnnotationServiceStub(self._channel).DetectStream()
        self._requests = [
            pb.DetectRequest(model=detector, image=pb.Image(encoded=photo.jpeg)) for photo in photos(FRAME_MEGAPIXELS)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self.answered = 0
        self.flowing = asyncio.Event()

    async def __aenter__(self) -> "FrameStream":
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _send(self) -> None:
        for number, request in zip(count(), cycle(self._requests), strict=False):
            await self._call.write(pb.DetectStreamRequest(frame_id=number, request=request))

    async def _receive(self) -> None:
        while (reply := await self._call.read()) is not grpc.aio.EOF:
            if reply.WhichOneof("result") != "response":
                raise RuntimeError(f"a frame was not answered: {reply}")
            self.answered += 1
            if self.answered == FLOWING_FRAMES:
                self.flowing.set()
        raise RuntimeError("the stream of frames ended")


@dataclass(slots=True)
class FloodResult:
    """Clicks beside so many streams of frames; first and next clicks of objects apart. seconds, frames: all blocks'."""

    streams: int
    first: Samples = field(default_factory=Samples)
    next: Samples = field(default_factory=Samples)
    seconds: float = 0
    frames: int = 0

    @property
    def frames_per_second(self) -> float:
        """Answered, by all streams together."""
        return self.frames / self.seconds


async def measure_flood(servers: Servers, result: FloodResult, seconds: float, least_clicks: int) -> None:
    """Add one block to the result: until the time is over and there are enough next clicks."""
    enough = len(result.next) + least_clicks
    generator = np.random.default_rng(len(result.next))
    photo = photos(CLICKED_MEGAPIXELS)[0]
    async with AsyncExitStack() as stack:
        annotator = await stack.enter_async_context(Annotator(servers.target, servers.tool))
        await annotator.open(photo)
        streams = [
            await stack.enter_async_context(FrameStream(servers.target, servers.detector))
            for _ in range(result.streams)
        ]
        async with deadline():
            await asyncio.gather(*(stream.flowing.wait() for stream in streams))
        begin, frames = time.perf_counter(), sum(stream.answered for stream in streams)
        for number in count():
            clicks = photo.clicks(generator)
            for newest in range(1, len(clicks) + 1):
                answer = await annotator.click(str(number), clicks[:newest])
                (result.first if newest == 1 else result.next).append(answer.wait_ms)
                await asyncio.sleep(generator.exponential(THINK_SECONDS))
            passed = time.perf_counter() - begin
            if (passed >= seconds and len(result.next) >= enough) or passed >= LONGEST * seconds:
                break
        result.seconds += time.perf_counter() - begin
        result.frames += sum(stream.answered for stream in streams) - frames

"""`detect_stream` over several calls, on a server that ends them by script: each frame is answered once, in order."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest

import polywand
from polywand import Detections, FrameResult
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.helpers import polywand_threads
from tests.client.scripted import Script, scripted_server

FRAMES = [bytes([number]) for number in range(40)]
NONE_LEFT = grpc.StatusCode.UNAVAILABLE


@dataclass
class Calls(Script):
    """A server that ends the first calls after a number of answers, and serves the later ones.

    end: ends a call. drains: it says instead that it is about to stop, and goes on, unless it `stops`.
    calls: the ids of the frames that came, by call.
    """

    after: int = 3
    first: int = 2
    end: Callable[[grpc.ServicerContext], None] = lambda context: context.abort(NONE_LEFT, "cut")
    drains: bool = False
    stops: bool = False
    calls: list[list[int]] = field(default_factory=list)

    def DetectStream(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.DetectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DetectStreamResponse]:
        came: list[int] = []
        self.calls.append(came)
        is_first = len(self.calls) <= self.first
        for count in itertools.count(1):
            try:
                request = next(requests)
            except StopIteration:
                return
            came.append(request.frame_id)
            if is_first and count > self.after and not self.drains:
                self.end(context)
                return
            yield pb.DetectStreamResponse(frame_id=request.frame_id, response=_found(request))
            if is_first and count == self.after and self.drains:
                yield pb.DetectStreamResponse(draining=pb.Draining(message="draining", remaining_ms=9000))
                if self.stops:
                    return


def _found(request: pb.DetectStreamRequest) -> pb.DetectResponse:
    """A detection that tells which frame it is about."""
    label = str(request.request.image.encoded[0])
    return pb.DetectResponse(model="m", detections=[pb.Detection(label=label)])


@contextmanager
def client_of(calls: Calls, timeout: float = 60) -> Iterator[polywand.Client]:
    with scripted_server(calls) as target, polywand.connect(target, timeout=timeout) as client:
        yield client
    assert not polywand_threads()


def check(results: list[FrameResult]) -> None:
    assert [result.number for result in results] == list(range(len(FRAMES)))
    assert [result.unwrap()[0].label for result in results] == [str(frame[0]) for frame in FRAMES]


ENDS = {
    "lost": lambda context: context.abort(NONE_LEFT, "cut"),
    "reset by a proxy": lambda context: context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM"),
    "cancelled by a proxy": lambda context: context.abort(grpc.StatusCode.CANCELLED, "idle for too long"),
    "ended": lambda context: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_frames_without_an_answer_are_sent_again_in_order(end: str) -> None:
    calls = Calls(end=ENDS[end])
    with client_of(calls) as client:
        check(list(client.detect_stream(FRAMES)))
    assert len(calls.calls) == 3
    assert [came[0] for came in calls.calls] == [0, 3, 6]
    for came in calls.calls:
        assert came == list(range(came[0], came[0] + len(came)))


async def test_so_they_are_by_the_asyncio_client() -> None:
    calls = Calls()

    async def frames() -> AsyncIterator[bytes]:
        for frame in FRAMES:
            yield frame

    with scripted_server(calls) as target:
        async with polywand.aio.connect(target) as client:
            check([result async for result in client.detect_stream(frames())])
    assert [came[0] for came in calls.calls] == [0, 3, 6]


def test_a_stream_that_drains_is_half_closed_and_answers_what_it_got() -> None:
    calls = Calls(drains=True, first=1)
    with client_of(calls) as client:
        check(list(client.detect_stream(FRAMES)))
    first, second = calls.calls
    assert first + second == list(range(len(FRAMES)))  # nothing was sent twice


@pytest.mark.parametrize(("drains", "error"), [(True, polywand.Draining), (False, polywand.Unavailable)])
def test_without_reconnecting_the_end_of_the_first_call_is_raised(
    drains: bool, error: type[polywand.PolywandError]
) -> None:
    calls = Calls(drains=drains, stops=True)
    with client_of(calls) as client:
        stream = client.detect_stream(FRAMES, reconnect=False)
        assert [next(stream).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(error) as caught:
            next(stream)
    assert type(caught.value) is error
    assert len(calls.calls) == 1


def test_when_no_answer_comes_in_time_the_last_reason_is_raised() -> None:
    calls = Calls(first=10_000, after=0)
    with client_of(calls, timeout=1.0) as client:
        started = time.monotonic()
        with pytest.raises(polywand.Unavailable, match="cut"):
            next(client.detect_stream(FRAMES))
        assert time.monotonic() - started >= 1.0
    assert len(calls.calls) > 2


def test_an_error_that_every_call_would_meet_is_raised_at_once() -> None:
    text = "message larger than max (9 vs. 4)"
    calls = Calls(end=lambda context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
    with client_of(calls) as client:
        stream = client.detect_stream(FRAMES)
        assert [next(stream).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(polywand.InvalidRequest, match="too large"):
            next(stream)
    assert len(calls.calls) == 1


def test_the_result_of_a_frame_is_a_pair_and_unwraps() -> None:
    error = polywand.Unavailable("away", NONE_LEFT)
    found = Detections((), 4, 3, "m", 1, None)  # type: ignore[arg-type]
    number, detections = FrameResult(7, found)
    assert (number, detections) == (7, found)
    good, bad = FrameResult(7, found), FrameResult(8, error)
    assert (good.detections, good.error, bad.detections, bad.error) == (found, None, None, error)
    assert good.unwrap() is found
    with pytest.raises(polywand.Unavailable):
        bad.unwrap()

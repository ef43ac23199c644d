"""The scale signal: what is in work and what waits, at every moment, and nothing when all have gone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.interactors import Gate
from tests.running import Service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

GAUGES = ("prompts_in_work", "prompts_waiting", "frames_in_work", "frames_waiting")
NOTHING = (0, 0, 0, 0)
IMAGE = raw_image(np.zeros((256, 256, 3), np.uint8))
FRAME = pb.DetectRequest(model="finder", image=IMAGE)


def load(service: Service) -> tuple[float, ...]:
    """Prompts in work and waiting, frames in work and waiting."""
    return tuple(service.metric(f"polywand_{name}") for name in GAUGES)


def becomes(service: Service, *numbers: int) -> None:
    wait_for(lambda: load(service) == numbers, 30, service)


@pytest.fixture(autouse=True)
def idle(puppets: Service):
    becomes(puppets, *NOTHING)
    yield
    becomes(puppets, *NOTHING)


@pytest.fixture
def stream(puppet_stub: annotation_pb2_grpc.AnnotationServiceStub):
    with InteractStream(puppet_stub) as opened:
        opened.ask(IMAGE)
        yield opened


def click(x: float = 128, object_id: str = "") -> pb.Prompt:
    return prompt("counter", (x, 128, POSITIVE), object_id=object_id)


def test_of_each_object_one_prompt_is_in_work_and_at_most_one_waits(
    puppets: Service, puppet_models: Path, stream: InteractStream
) -> None:
    with Gate(puppet_models, "counter") as gate:
        stream.send(click(object_id="a"))
        gate.wait_until_begun()
        becomes(puppets, 1, 0, 0, 0)
        last = [stream.send(click(x, "a")) for x in (110, 120, 130)][-1]
        becomes(puppets, 1, 1, 0, 0)  # the newest; those that it has replaced are gone
        stream.send(click(object_id="b"))
        becomes(puppets, 2, 1, 0, 0)
    while stream.receive().sequence != last:
        pass


def test_a_prompt_beyond_what_a_stream_may_have_in_work_waits(
    puppets: Service, puppet_models: Path, stream: InteractStream
) -> None:
    with Gate(puppet_models, "counter") as gate:
        for name in "abcdef":
            stream.send(click(object_id=name))
        becomes(puppets, 4, 2, 0, 0)
        gate.let_through(100)
        for _ in "abcdef":
            stream.receive()


def test_forget_takes_prompts_out(puppets: Service, puppet_models: Path, stream: InteractStream) -> None:
    with Gate(puppet_models, "counter") as gate:
        for x in (110, 120):
            stream.send(click(x))
            gate.wait_until_begun()
        becomes(puppets, 1, 1, 0, 0)
        stream.ask(pb.Forget(all=True))
        becomes(puppets, *NOTHING)


@pytest.mark.parametrize("end", ["cancel", "another image"])
def test_the_end_of_a_stream_or_of_its_image_takes_prompts_out(
    puppets: Service, puppet_models: Path, stream: InteractStream, end: str
) -> None:
    with Gate(puppet_models, "counter") as gate:
        for x in (110, 120):
            stream.send(click(x))
            gate.wait_until_begun()
        becomes(puppets, 1, 1, 0, 0)
        if end == "cancel":
            stream.call.cancel()
        else:
            stream.ask(IMAGE)
        becomes(puppets, *NOTHING)


def test_prompts_that_are_refused_leave_nothing(puppets: Service, stream: InteractStream) -> None:
    stream.ask(prompt("no such tool", (1, 1, POSITIVE)))
    stream.ask(prompt("counter", (9999, 1, POSITIVE)))
    becomes(puppets, *NOTHING)


def test_the_prompt_of_a_call_is_in_work(
    puppets: Service, puppet_models: Path, puppet_stub: annotation_pb2_grpc.AnnotationServiceStub
) -> None:
    with Gate(puppet_models, "counter"):
        call = puppet_stub.Segment.future(pb.SegmentRequest(image=IMAGE, prompts=[click()]))
        becomes(puppets, 1, 0, 0, 0)
    call.result(30)


def test_of_a_call_with_many_prompts_those_that_have_not_begun_wait(
    puppets: Service, puppet_models: Path, puppet_stub: annotation_pb2_grpc.AnnotationServiceStub
) -> None:
    request = pb.SegmentRequest(image=IMAGE, prompts=[click(object_id=str(number)) for number in range(30)])
    with Gate(puppet_models, "counter") as gate:
        call = puppet_stub.Segment.future(request)
        gate.wait_until_begun()
        becomes(puppets, 16, 14, 0, 0)
        call.cancel()
        becomes(puppets, *NOTHING)
    assert len(puppet_stub.Segment(request).results) == 30


def test_a_frame_waits_then_is_in_work(
    puppets: Service, puppet_models: Path, puppet_stub: annotation_pb2_grpc.AnnotationServiceStub
) -> None:
    with Gate(puppet_models, "finder") as gate, ThreadPoolExecutor(6) as callers:
        calls = [callers.submit(puppet_stub.Detect, FRAME) for _ in range(6)]
        becomes(puppets, 0, 0, 2, 4)  # --frames-in-work is 2; four calls are read, and the others wait unread
        gate.let_through(100)
        assert all(call.result(30).detections for call in calls)


@pytest.mark.parametrize("end", ["answered", "cancelled"])
def test_frames_of_a_stream_wait_then_are_in_work(
    puppets: Service, puppet_models: Path, puppet_stub: annotation_pb2_grpc.AnnotationServiceStub, end: str
) -> None:
    frames = (pb.DetectStreamRequest(frame_id=number, request=FRAME) for number in range(8))
    with Gate(puppet_models, "finder") as gate:
        call = puppet_stub.DetectStream(frames)
        becomes(puppets, 0, 0, 2, 3)  # four are in flight, and one more was read
        if end == "cancelled":
            call.cancel()
            becomes(puppets, *NOTHING)
            return
        gate.let_through(100)
        assert len(list(call)) == 8


def test_frames_that_are_refused_leave_nothing(
    puppets: Service, puppet_stub: annotation_pb2_grpc.AnnotationServiceStub
) -> None:
    for request in (pb.DetectRequest(model="no such tool", image=IMAGE), pb.DetectRequest(model="finder")):
        with pytest.raises(grpc.RpcError):
            puppet_stub.Detect(request)
    becomes(puppets, *NOTHING)

"""A client that cancels or disappears frees all that it held at once, down to the request at Triton."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import BRIGHT, comb, own_connection, requests
from tests.faults.footprint import DETECT_STREAMS, INTERACT_STREAMS, MASK_MEMORY, wait_for_rest
from tests.faults.models import count, journal_of
from tests.faults.relay import Relay
from tests.faults.victim import FIRST_CLICK, UPLOAD_BYTES, send_prompts
from tests.running import Service, images_in_use, wait_for
from tests.streams import POSITIVE, InteractStream, prompt

ROOT = Path(__file__).parents[2]
SOON_SECONDS = 60
INTERACT = "/polywand.v1.AnnotationService/Interact"
FRAMES = [
    pb.DetectStreamRequest(frame_id=number, request=pb.DetectRequest(model="snail", image=BRIGHT))
    for number in range(4)
]


@contextmanager
def victim(target: str, what: str) -> Iterator[None]:
    """A client in a process of its own (see `victim`), which is killed when the block ends."""
    with subprocess.Popen([sys.executable, "-m", "tests.faults.victim", target, what], cwd=ROOT) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def killed(service: Service) -> Iterator[None]:
    """Prompts whose client is killed."""
    with victim(service.target, "prompts"):
        yield


@contextmanager
def cancelled(service: Service) -> Iterator[None]:
    """Prompts whose stream is cancelled."""
    with own_connection(service) as channel, InteractStream(AnnotationServiceStub(channel)) as stream:
        stream.ask(BRIGHT)
        stream.ask(prompt("shade", FIRST_CLICK))
        send_prompts(stream)
        yield


@pytest.mark.parametrize("going", [cancelled, killed])
def test_the_prompts_of_a_client_that_goes_end_at_triton_too(sturdy, sturdy_stub, repository, going):
    """One is at work there, and is told to stop; those that wait for it never begin; the next client finds it free."""
    journal = journal_of(repository, "shade")
    began, stopped = count(journal, "began"), count(journal, "cancelled")
    with going(sturdy):
        wait_for(lambda: count(journal, "began") == began + 1, SOON_SECONDS, sturdy)
        assert sturdy.metric(INTERACT_STREAMS) == 1
        assert images_in_use(sturdy) > 0
        assert sturdy.metric(MASK_MEMORY) > 0
    wait_for(lambda: count(journal, "cancelled") > stopped, SOON_SECONDS, sturdy)
    wait_for_rest(sturdy, SOON_SECONDS)
    with InteractStream(sturdy_stub) as other:
        other.ask(BRIGHT)
        assert other.ask(prompt("shade", FIRST_CLICK)).segmentation.shape.polygons
    assert count(journal, "began") == began + 1


def detect(stub: AnnotationServiceStub) -> Callable[[], object]:
    """Send one frame; return what cancels it."""
    return stub.Detect.future(FRAMES[0].request).cancel


def detect_stream(stub: AnnotationServiceStub) -> Callable[[], object]:
    """Send several frames; return what cancels them."""
    return stub.DetectStream(iter(FRAMES)).cancel


@pytest.mark.parametrize("call", [detect, detect_stream])
def test_the_frames_of_a_client_that_cancels_end_at_triton_too(sturdy, sturdy_stub, repository, call):
    journal = journal_of(repository, "snail")
    began, stopped = count(journal, "began"), count(journal, "cancelled")
    cancel = call(sturdy_stub)
    wait_for(lambda: count(journal, "began") == began + 1, SOON_SECONDS, sturdy)
    cancel()
    wait_for(lambda: count(journal, "cancelled") > stopped, SOON_SECONDS, sturdy)
    wait_for(lambda: sturdy.metric(DETECT_STREAMS) == 0, SOON_SECONDS, sturdy)
    again = detect(sturdy_stub)
    wait_for(lambda: count(journal, "began") > began + 1, SOON_SECONDS, sturdy)
    assert count(journal, "cancelled") == stopped + 1  # so what began now is the new frame: none of the old ones did
    again()
    wait_for(lambda: count(journal, "cancelled") == stopped + 2, SOON_SECONDS, sturdy)
    assert count(journal, "began") == began + 2


def test_a_client_killed_in_the_middle_of_an_upload_leaves_nothing(sturdy, sturdy_stub):
    with InteractStream(sturdy_stub) as other:
        other.ask(comb(64))
        held = images_in_use(sturdy)
        with Relay(sturdy.target, UPLOAD_BYTES // 3) as relay, victim(relay.target, "upload"):
            assert relay.full.wait(30)
            assert sturdy.metric(INTERACT_STREAMS) == 2
            assert images_in_use(sturdy) > held
            assert other.ask(prompt("shade", FIRST_CLICK)).segmentation.shape.polygons
        wait_for(lambda: sturdy.metric(INTERACT_STREAMS) == 1, SOON_SECONDS, sturdy)
        wait_for(lambda: images_in_use(sturdy) == held, SOON_SECONDS, sturdy)


async def test_streams_that_end_and_are_cancelled_in_the_same_moment_leave_nothing(sturdy):
    """Their replies fill the outbox: no task waits for room in it for ever, whichever of the two is noticed first."""
    clicks = [prompt("shade", (1, 1, POSITIVE), object_id=str(number), tolerance=0) for number in range(60)]
    messages = [request.SerializeToString() for request in requests([comb(600), *clicks])]

    async def come_and_go(milliseconds: float) -> None:
        async with grpc.aio.insecure_channel(sturdy.target) as channel:
            call = channel.stream_stream(INTERACT)()
            for message in messages:
                await call.write(message)
            await asyncio.sleep(0.3)
            await call.done_writing()
            await asyncio.sleep(milliseconds / 1000)
            call.cancel()

    for _ in range(10):
        await asyncio.gather(*(come_and_go((number % 10) / 5) for number in range(12)))
    wait_for(lambda: sturdy.metric(INTERACT_STREAMS) == 0, SOON_SECONDS, sturdy)

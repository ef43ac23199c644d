"""The service ends, in order or not, while streams are open: they are told, in time, and nothing is left behind."""

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import BRIGHT, Talk, comb, own_connection, unfinished
from tests.faults.conftest import DRAIN_SECONDS
from tests.faults.footprint import INTERACT_STREAMS, Traces
from tests.faults.models import count, journal_of
from tests.faults.victim import send_prompts
from tests.running import wait_for
from tests.streams import POSITIVE, InteractStream, prompt

IDLE_STREAMS = 5
END_SECONDS = 40  # beyond the drain's: for Triton to stop, and for this machine to be slow


def clicks(stopped: threading.Event) -> Iterator[pb.Image | pb.Prompt]:
    """An image, and clicks one after another until stopped."""
    yield BRIGHT
    for number in itertools.count():
        if stopped.wait(0.005):
            return
        yield prompt("shade", (1 + number % 60, 1, POSITIVE))


def large_answers(count: int) -> Iterator[pb.Image | pb.Prompt]:
    """An image, and prompts whose answers have a megabyte each."""
    yield comb(512)
    for number in range(count):
        yield prompt("shade", (1, 1, POSITIVE), object_id=str(number), tolerance=0, mask=True)


def last_words(replies: list[pb.InteractResponse]) -> str:
    assert not any(reply.HasField("draining") for reply in replies[:-1])
    assert all(reply.WhichOneof("result") in ("image", "segmentation") for reply in replies[:-1])
    return replies[-1].draining.message


def test_sigterm_tells_every_stream_to_reconnect_and_leaves_nothing(fresh):
    """Idle, prompting, slow to read: each gets all its answers, then the message, then an orderly end."""
    traces = Traces.of(fresh)
    stopped = threading.Event()
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(fresh)))
        idle = [stack.enter_context(InteractStream(stub)) for _ in range(IDLE_STREAMS)]
        for stream in idle:
            assert stream.ask(BRIGHT).image.width == 64
        prompting = Talk(stub, clicks(stopped))
        slow = Talk(stub, unfinished(large_answers(12), stopped), before_reading=lambda: time.sleep(0.1))
        frames = stub.DetectStream(unfinished([], stopped))
        stack.callback(stopped.set)
        wait_for(lambda: len(prompting.replies) > 10 and len(slow.replies) > 3 and slow.sent == 13, 60, fresh)

        fresh.process.send_signal(signal.SIGTERM)
        for stream in idle:
            assert "reconnect" in stream.receive().draining.message
            assert stream.receive_end() == grpc.StatusCode.OK
        assert "reconnect" in next(frames).draining.message
        assert frames.code() == grpc.StatusCode.OK
        for talk in (prompting, slow):
            assert talk.end() == grpc.StatusCode.OK
            assert "reconnect" in last_words(talk.replies)
        answered = [reply for reply in slow.replies if reply.HasField("segmentation")]
        assert len(answered) == 12  # all that it asked for, however late it read
    assert fresh.process.wait(DRAIN_SECONDS - 10) == 0  # it has not waited for the drain's end
    wait_for(lambda: not traces.left(), END_SECONDS)


@pytest.mark.parametrize("drain_seconds", [8])
def test_sigterm_does_not_wait_for_ever_for_a_client_that_never_reads(fresh, fresh_stub, drain_seconds):
    """While it waits, new streams are refused; then it ends, and the status of the stream that was left says so."""
    traces = Traces.of(fresh)
    forever = threading.Event()
    talk = Talk(fresh_stub, unfinished(large_answers(40), forever), before_reading=forever.wait)
    with own_connection(fresh) as channel, InteractStream(AnnotationServiceStub(channel)) as idle:
        idle.ask(BRIGHT)
        wait_for(
            lambda: fresh.metric('polywand_inferences_total{model="shade",outcome="ok",version="1"}') > 3, 60, fresh
        )
        fresh.process.send_signal(signal.SIGTERM)
        assert "reconnect" in idle.receive().draining.message
        assert fresh.get("/readyz") == (503, "not ready: draining\n")
        assert fresh.metric(INTERACT_STREAMS) == 1
        for connection in (channel, own_connection(fresh)):
            with InteractStream(AnnotationServiceStub(connection)) as late:
                late.send(BRIGHT)
                assert late.receive_end() == grpc.StatusCode.UNAVAILABLE
    assert fresh.process.wait(drain_seconds + END_SECONDS) == 0
    forever.set()
    assert talk.end() == grpc.StatusCode.UNAVAILABLE
    wait_for(lambda: not traces.left(), END_SECONDS)


def test_a_service_killed_with_prompts_in_flight_leaves_nothing(fresh, fresh_stub, repository):
    journal = journal_of(repository, "shade")
    began = count(journal, "began")
    stopped = threading.Event()
    with InteractStream(fresh_stub) as stream:
        stream.ask(BRIGHT)
        talk = Talk(fresh_stub, clicks(stopped))
        wait_for(lambda: len(talk.replies) > 10, 60, fresh)
        send_prompts(stream)
        wait_for(lambda: count(journal, "began") == began + 1, 60, fresh)
        traces = Traces.of(fresh)
        assert len(traces.processes) > 3
        fresh.process.kill()
        assert stream.receive_end() == grpc.StatusCode.UNAVAILABLE
        assert talk.end() == grpc.StatusCode.UNAVAILABLE
        stopped.set()
    fresh.process.wait(END_SECONDS)
    wait_for(lambda: not traces.left(), END_SECONDS)

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
from tests.interactors import Gate
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


def announcements(replies: list[pb.InteractResponse]) -> list[int]:
    """Where among a stream's replies the drain is announced; all others are answers."""
    kinds = [reply.WhichOneof("result") for reply in replies]
    assert set(kinds) <= {"image", "segmentation", "draining"}
    return [number for number, kind in enumerate(kinds) if kind == "draining"]


def assert_announced(draining: pb.Draining, drain_seconds: float) -> None:
    assert "reconnect" in draining.message
    assert 0 < draining.remaining_ms < drain_seconds * 1000


def test_sigterm_tells_every_stream_to_reconnect_and_leaves_nothing(fresh, repository):
    """Idle, busy, slow to read: each is told at once, gets all its answers, and an orderly end."""
    traces = Traces.of(fresh)
    stopped = threading.Event()
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(fresh)))
        idle = [stack.enter_context(InteractStream(stub)) for _ in range(IDLE_STREAMS)]
        for stream in idle:
            assert stream.ask(BRIGHT).image.width == 64
        busy = stack.enter_context(InteractStream(stub))
        busy.ask(BRIGHT)
        gate = stack.enter_context(Gate(repository, "quick"))
        held = busy.send(prompt("quick", (1, 1, POSITIVE), object_id="held"))
        gate.wait_until_begun()
        slow = Talk(stub, unfinished(large_answers(12), stopped), before_reading=lambda: time.sleep(0.1))
        frames = stub.DetectStream(unfinished([], stopped))
        stack.callback(stopped.set)
        wait_for(lambda: len(slow.replies) > 3 and slow.sent == 13, 60, fresh)

        fresh.process.send_signal(signal.SIGTERM)
        for stream in idle:
            assert_announced(stream.receive().draining, DRAIN_SECONDS)
            assert stream.receive_end() == grpc.StatusCode.OK
        assert_announced(next(frames).draining, DRAIN_SECONDS)
        assert list(frames) == []
        assert frames.code() == grpc.StatusCode.OK
        # Idle streams have ended, and one that waits for an answer goes on.
        assert_announced(busy.receive().draining, DRAIN_SECONDS)
        for x in (2, 3):
            assert busy.ask(prompt("shade", (x, 1, POSITIVE))).HasField("segmentation")
        gate.let_through()
        assert busy.receive().sequence == held
        assert busy.receive_end() == grpc.StatusCode.OK
        assert slow.end() == grpc.StatusCode.OK
        assert len(announcements(slow.replies)) == 1
        answered = [reply for reply in slow.replies if reply.HasField("segmentation")]
        assert len(answered) == 12  # all that it asked for, however late it read
    assert fresh.process.wait(DRAIN_SECONDS - 10) == 0  # it has not waited for the drain's end
    wait_for(lambda: not traces.left(), END_SECONDS)


@pytest.mark.parametrize("drain_seconds", [6])
def test_a_stream_that_is_told_to_move_and_stays_is_served_until_its_time_is_over(fresh, fresh_stub, drain_seconds):
    """And so are frames: what is read by then is answered, and the streams end in order, in time."""
    over = threading.Event()
    staying = Talk(fresh_stub, clicks(over))
    frame = pb.DetectRequest(model="no such detector", image=BRIGHT)
    frames = []

    def send_frames() -> Iterator[pb.DetectStreamRequest]:
        for number in itertools.count(1):
            if over.wait(0.05):
                return
            yield pb.DetectStreamRequest(frame_id=number, request=frame)

    call = fresh_stub.DetectStream(send_frames())
    reader = threading.Thread(target=lambda: frames.extend(call), daemon=True)
    reader.start()
    wait_for(lambda: len(staying.replies) > 10, 60, fresh)
    fresh.process.send_signal(signal.SIGTERM)
    assert staying.end() == grpc.StatusCode.OK
    reader.join(60)
    assert call.code() == grpc.StatusCode.OK
    assert fresh.process.wait(drain_seconds + END_SECONDS) == 0
    over.set()
    (announced,) = announcements(staying.replies)
    assert_announced(staying.replies[announced].draining, drain_seconds)
    answered = [reply.sequence for reply in staying.replies if not reply.HasField("draining")]
    assert answered == sorted(answered)
    assert len(answered) + sum(reply.skipped for reply in staying.replies) == answered[-1]  # each once
    numbers = [reply.frame_id for reply in frames if reply.HasField("error")]
    assert numbers == list(range(1, len(numbers) + 1))
    (announced,) = [number for number, reply in enumerate(frames) if reply.HasField("draining")]
    assert_announced(frames[announced].draining, drain_seconds)
    assert "cancelled" not in fresh.log.read_text()


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
        assert_announced(idle.receive().draining, drain_seconds)
        assert fresh.get("/readyz") == (503, "not ready: draining\n")
        assert idle.receive_end() == grpc.StatusCode.OK
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

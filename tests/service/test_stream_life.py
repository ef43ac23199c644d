"""Streams that are idle, that are old, and whose server waits before it drains."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

Stub = annotation_pb2_grpc.AnnotationServiceStub
PIXELS = np.zeros((64, 64, 3), np.uint8)
IMAGE = raw_image(PIXELS)
CLICK = prompt("disk", (20, 20, POSITIVE))
POINTS = [(20, 20, "positive")]


@contextmanager
def service(
    puppets: Service, log, *options: str
) -> Iterator[tuple[Service, annotation_pb2_grpc.AnnotationServiceStub]]:
    """A service of its own, on the puppets' Triton."""
    with running_service(log, f"--triton-url={puppets.triton}", *options) as running:
        running.wait_ready()
        with grpc.insecure_channel(running.target) as channel:
            yield running, annotation_pb2_grpc.AnnotationServiceStub(channel)


def kinds(stream: InteractStream, count: int) -> list[str | None]:
    return [stream.receive().WhichOneof("result") for _ in range(count)]


def test_idle_streams_get_heartbeats_which_answer_nothing_and_which_the_sdk_ignores(puppets, tmp_path):
    with service(puppets, tmp_path / "log", "--heartbeat-seconds=0.2") as (running, stub):
        with InteractStream(stub) as stream:
            stream.send(IMAGE)
            assert kinds(stream, 4) == ["image", "heartbeat", "heartbeat", "heartbeat"]
            sequence = stream.send(CLICK)
            replies = [stream.receive() for _ in range(8)]
            answers = [reply for reply in replies if reply.WhichOneof("result") != "heartbeat"]
            assert [(reply.sequence, reply.WhichOneof("result")) for reply in answers] == [(sequence, "segmentation")]
            assert {reply.sequence for reply in replies} == {0, sequence}
        frames = stub.DetectStream(iter(lambda: time.sleep(1) or pb.DetectStreamRequest(), None))
        assert next(frames).WhichOneof("result") == "heartbeat"
        frames.cancel()
        before = running.metric("polywand_heartbeats_total")
        assert before >= 4
        with polywand.connect(running.target) as client, client.open(PIXELS) as session:
            wait_for(lambda: running.metric("polywand_heartbeats_total") >= before + 3, 30, running)
            assert session.prompt("disk", points=POINTS).polygons


def test_without_heartbeats_nothing_is_sent_on_an_idle_stream(puppets, tmp_path):
    with service(puppets, tmp_path / "log", "--heartbeat-seconds=0") as (running, stub), InteractStream(stub) as stream:
        stream.ask(IMAGE)
        time.sleep(1)
        stream.ask(CLICK)  # the next reply is its answer
        assert running.metric("polywand_heartbeats_total") == 0


def test_an_old_stream_is_told_to_move_and_is_answered_meanwhile(puppets, tmp_path):
    options = "--stream-max-age-seconds=1", "--drain-seconds=8"
    with service(puppets, tmp_path / "log", *options) as (running, stub), InteractStream(stub) as stream:
        began = time.monotonic()
        stream.ask(IMAGE)
        reply = stream.receive()
        assert reply.WhichOneof("result") == "draining"
        assert time.monotonic() - began >= 0.9  # no less than the age less its jitter
        assert "age" in reply.draining.message
        assert 0 < reply.draining.remaining_ms <= 8000
        stream.ask(CLICK)
        stream.finish()
        assert stream.receive_end() == grpc.StatusCode.OK
        assert running.metric('polywand_streams_moved_total{reason="age"}') == 1
        assert running.get("/readyz") == (200, "ready\n")


def test_no_prompt_is_lost_when_streams_move_by_their_age(puppets, tmp_path):
    with (
        service(puppets, tmp_path / "log", "--stream-max-age-seconds=0.5") as (running, _),
        polywand.connect(running.target) as client,
        client.open(PIXELS) as session,
    ):
        first = session.prompt("disk", points=POINTS)
        deadline = time.monotonic() + 60
        while running.metric('polywand_streams_moved_total{reason="age"}') < 4:
            assert time.monotonic() < deadline
            assert np.array_equal(
                session.prompt("disk", points=POINTS).polygons[0].exterior, first.polygons[0].exterior
            )


def test_before_the_drain_health_says_not_serving_and_all_calls_are_taken(puppets, tmp_path):
    options = "--drain-delay-seconds=3", "--drain-seconds=5"
    with service(puppets, tmp_path / "log", *options) as (running, stub), InteractStream(stub) as stream:
        stream.ask(IMAGE)
        running.process.send_signal(signal.SIGTERM)
        with grpc.insecure_channel(running.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            wait_for(lambda: health.Check(health_pb2.HealthCheckRequest()).status == not_serving, 30, running)
            assert running.get("/readyz")[0] == 503
            fresh = annotation_pb2_grpc.AnnotationServiceStub(channel)
            assert fresh.GetServerInfo(pb.GetServerInfoRequest()).state == pb.SERVER_STATE_DRAINING
            with InteractStream(fresh) as another:
                another.ask(IMAGE)
                another.ask(CLICK)
        assert stream.receive().WhichOneof("result") == "draining"  # after the delay
        assert running.process.wait(30) == 0


def test_a_second_signal_ends_the_delay_at_once(puppets, tmp_path):
    with service(puppets, tmp_path / "log", "--drain-delay-seconds=600") as (running, _):
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: running.get("/readyz")[0] == 503, 30, running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 1

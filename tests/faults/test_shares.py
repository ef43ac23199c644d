"""Shares: what one client takes, of turns or of memory, leaves the others theirs; and what is full says so."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import BRIGHT, Talk, comb, own_connection, status, unfinished
from tests.faults.footprint import INTERACT_STREAMS, MASK_MEMORY
from tests.faults.models import count, journal_of
from tests.faults.test_bounds import detail_of
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, departure, prompt, raw_image

MEBIBYTE = 2**20
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
GIVEN_UP = grpc.StatusCode.FAILED_PRECONDITION
INTERACT = "polywand.v1.AnnotationService/Interact"
ENDED = ("RESOURCE_EXHAUSTED", "CANCELLED")  # as the service counts a stream that it ends, read or not
REPLY_MEMORY = "polywand_reply_memory_bytes"
BODY_MEMORY = "polywand_body_memory_bytes"


@contextmanager
def service_with(repository, tmp_path, *options: str) -> Iterator[Service]:
    with running_service(tmp_path / "log", f"--model-repository={repository}", *options) as service:
        service.wait_ready("shade", "snail")
        yield service


@contextmanager
def client(service: Service) -> Iterator[InteractStream]:
    """One client: a stream on a connection of its own."""
    with own_connection(service) as channel, InteractStream(AnnotationServiceStub(channel)) as stream:
        yield stream


def blank(side: int) -> pb.Image:
    return raw_image(np.zeros((side, side, 3), np.uint8))


def test_a_client_with_many_streams_leaves_another_client_its_turns(sturdy, astronaut):
    """Forty objects on ten streams of one connection want inferences without a pause; another client's click has its
    inferences in between, each after at most two of theirs: one that is at work, and one that has been given a turn.
    """
    image = raw_image(astronaut)
    over = threading.Event()
    answers: list[int] = []

    def flood(stream: InteractStream) -> None:
        stream.ask(image)
        for number in range(4):
            stream.send(prompt("wand_click", (220, 130, POSITIVE), object_id=str(number)))
        number = 0
        while not over.is_set():
            reply = stream.receive(150)
            answers.append(departure(reply.timing))
            number += 1
            point = (150 + number % 100, 130 + number % 70, POSITIVE)
            stream.send(prompt("wand_click", point, object_id=reply.object_id))

    with ExitStack() as stack:
        greedy = AnnotationServiceStub(stack.enter_context(own_connection(sturdy)))
        streams = [stack.enter_context(InteractStream(greedy)) for _ in range(10)]
        modest = stack.enter_context(client(sturdy))
        modest.ask(image)
        floods = [threading.Thread(target=flood, args=(stream,), daemon=True) for stream in streams]
        for thread in floods:
            thread.start()
        wait_for(lambda: len(answers) > 10, 150, sturdy)
        overtaken = []
        for number in range(10):
            reply = modest.ask(prompt("wand_click", (220 + number, 130, POSITIVE), object_id=str(number)), 150)
            timing = reply.timing
            overtaken.append((timing, timing.inferences))
            time.sleep(0.2)  # somebody looks at the outline
        over.set()
        for thread in floods:
            thread.join(150)
    for timing, inferences in overtaken[1:]:  # at the first one the client is not known yet
        meanwhile = sum(timing.received_unix_us <= answer < departure(timing) for answer in answers)
        # Every answer of theirs takes two inferences at least, so two of them at each of its own are one answer.
        assert meanwhile <= 2 * inferences + 2, (meanwhile, inferences)


def test_an_idle_stream_gives_its_image_up_before_another_client_is_refused(repository, tmp_path):
    """Sixty-four mebibytes hold two images of 2600 x 2600 pixels with their pyramids, and not three."""
    with service_with(repository, tmp_path, "--images-mebibytes=64") as service, ExitStack() as stack:
        hoarder = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        idle = [stack.enter_context(InteractStream(hoarder)) for _ in range(2)]
        for stream in idle:
            assert stream.ask(blank(2600)).image.width == 2600
        other = stack.enter_context(client(service))
        wait_for(lambda: other.ask(blank(2600)).HasField("image"), 60, service)
        replies = [stream.ask(prompt("shade", (1, 1, POSITIVE))) for stream in idle]
        assert sorted(map(status, replies), key=str) == [GIVEN_UP, grpc.StatusCode.OK]
        refused = next(reply for reply in replies if reply.HasField("error"))
        reason = detail_of(refused.error, error_details_pb2.ErrorInfo)
        assert (reason.reason, reason.domain) == ("IMAGE_GIVEN_UP", "polywand")
        loser = idle[replies.index(refused)]
        assert loser.ask(blank(100)).image.width == 100
        assert loser.ask(prompt("shade", (1, 1, POSITIVE))).HasField("segmentation")


def test_images_that_find_no_room_are_told_what_is_full_and_when_to_come_back(repository, tmp_path):
    with service_with(repository, tmp_path, "--images-mebibytes=32") as service, client(service) as busy:
        busy.ask(blank(2600))
        with client(service) as other:
            busy.send(prompt("shade", (1, 1, POSITIVE), (2, 2, POSITIVE)))  # a minute's work
            wait_for(lambda: count(journal_of(repository, "shade"), "began"), 60, service)
            reply = other.ask(blank(2600))
            assert status(reply) is FULL
            assert "at most 32 MiB of images" in reply.error.message
            assert detail_of(reply.error, error_details_pb2.QuotaFailure).violations[0].subject == "images"
            assert detail_of(reply.error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1


def test_an_active_stream_keeps_what_it_remembers_however_many_streams_there_are(repository, tmp_path):
    """Four mebibytes for the maps of all streams, and two hundred streams without any: undo is answered from memory."""
    with service_with(repository, tmp_path, "--memory-mebibytes=4") as service, ExitStack() as stack:
        active = stack.enter_context(client(service))
        active.ask(BRIGHT)
        first = prompt("shade", (1, 1, POSITIVE))
        assert active.ask(first).timing.inferences == 1
        for _ in range(2):
            crowd = AnnotationServiceStub(stack.enter_context(own_connection(service)))
            for _ in range(100):
                stack.enter_context(InteractStream(crowd)).send(BRIGHT)
        wait_for(lambda: service.metric(INTERACT_STREAMS) == 201, 60, service)
        assert active.ask(prompt("shade", (2, 2, POSITIVE))).timing.inferences == 1
        assert active.ask(first).timing.inferences == 0
        assert 0 < service.metric(MASK_MEMORY) <= 4 * MEBIBYTE


def test_answers_that_nobody_reads_are_bounded_over_all_streams(repository, tmp_path):
    """Twelve streams never read their large answers: with two mebibytes for all, some of them are ended, and it says
    why; who reads is answered all the while.
    """
    never, reading = threading.Event(), threading.Event()
    with service_with(repository, tmp_path, "--replies-mebibytes=2") as service, ExitStack() as stack:
        reader = stack.enter_context(client(service))
        reader.ask(BRIGHT)
        talks = []
        for _ in range(12):
            stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
            prompts = [
                prompt("shade", (1, 1, POSITIVE), object_id=str(i), tolerance=0, include_mask=True) for i in range(30)
            ]
            talks.append(Talk(stub, unfinished([comb(256), *prompts], never), before_reading=reading.wait))
        ended = [f'polywand_grpc_requests_total{{code="{code}",method="{INTERACT}"}}' for code in ENDED]
        wait_for(lambda: any(service.metric(sample) for sample in ended), 120, service)
        for number in range(20):
            assert reader.ask(prompt("shade", (3 + number, 3, POSITIVE))).HasField("segmentation")
            assert service.metric(REPLY_MEMORY) < 8 * MEBIBYTE
        reading.set()
        wait_for(lambda: any(talk.ended for talk in talks), 60, service)
        assert {talk.end() for talk in talks if talk.ended} == {FULL}
        for talk in talks:
            talk.call.cancel()
        wait_for(lambda: service.metric(REPLY_MEMORY) == 0, 60, service)


def test_calls_beyond_the_line_are_told_to_come_back(repository, tmp_path):
    """One call in work, two in line: of six others all are refused at once, and the three are answered."""
    options = ("--calls-at-once=1", "--calls-waiting=2")
    with service_with(repository, tmp_path, *options) as service, own_connection(service) as channel:
        stub = AnnotationServiceStub(channel)
        request = pb.DetectRequest(model="snail", image=BRIGHT)
        first = stub.Detect.future(request)
        wait_for(lambda: count(journal_of(repository, "snail"), "began"), 60, service)
        others = [stub.Detect.future(request) for _ in range(8)]
        wait_for(lambda: sum(call.done() for call in others) == 6, 60, service)
        for call in others:
            if call.done():
                assert call.code() is FULL
                refusal = rpc_status.from_call(call)
                assert detail_of(refusal, error_details_pb2.QuotaFailure).violations[0].subject == "calls with an image"
                assert detail_of(refusal, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
        assert not first.done()
        for call in (first, *others):
            call.cancel()
        with client(service) as stream:
            assert stream.ask(BRIGHT).image.width == 64


def test_images_that_wait_to_be_decoded_are_bounded_over_all_streams(repository, tmp_path):
    """Of 32 mebibytes one client may have half: two frames of seven wait for a slow one; more are refused, not kept."""
    with (
        service_with(
            repository, tmp_path, "--bodies-mebibytes=32", "--max-image-mebibytes=8", "--infer-timeout-seconds=3"
        ) as service,
        ExitStack() as stack,
    ):
        frame = pb.DetectRequest(model="snail", image=blank(1500))
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        end = threading.Event()
        frames = [pb.DetectStreamRequest(frame_id=number, request=frame) for number in range(4)]
        calls = [stub.DetectStream(unfinished(frames, end)) for _ in range(2)]
        stack.callback(end.set)
        wait_for(lambda: service.metric(BODY_MEMORY) > 0, 60, service)
        errors = (reply.error for call in calls for reply in call if reply.HasField("error"))
        refused = next(error for error in errors if error.code == FULL.value[0])
        assert detail_of(refused, error_details_pb2.QuotaFailure).violations[0].subject == "images that wait"
        assert service.metric(BODY_MEMORY) <= 32 * MEBIBYTE
        for call in calls:
            call.cancel()
        wait_for(lambda: service.metric(BODY_MEMORY) == 0, 60, service)

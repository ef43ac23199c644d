"""Shares: what one client takes, of turns or of memory, leaves the others theirs; and what is full says so."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import BRIGHT, NARROW, Talk, comb, own_connection, status, unfinished
from tests.faults.footprint import INTERACT_STREAMS, MASK_MEMORY, wait_for_rest
from tests.faults.models import count, journal_of
from tests.faults.test_bounds import detail_of
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, departure, prompt, raw_image, receipt

MEBIBYTE = 2**20
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
GIVEN_UP = grpc.StatusCode.FAILED_PRECONDITION
INTERACT = "polywand.v1.AnnotationService/Interact"
REPLY_MEMORY = "polywand_reply_memory_bytes"
BODY_MEMORY = "polywand_body_memory_bytes"
# Answers to a client with forty objects on ten streams, between the click of another client and its answer; of half the
# clicks: 1 or 2 were seen, of those at work. With turns for streams, and not for clients, 11 were seen; without any it
# would be 40.
ANSWERS_BETWEEN = 5


@pytest.fixture(scope="module")
def narrow_service(repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with little room for images, remembered maps and replies, and few unary calls at once."""
    options = (
        f"--model-repository={repository}",
        "--images-mebibytes=64",
        "--memory-mebibytes=4",
        "--replies-mebibytes=2",
        "--calls-at-once=1",
        "--calls-waiting=2",
    )
    with running_service(tmp_path_factory.mktemp("narrow") / "log", *options) as service:
        service.wait_ready("shade", "snail")
        yield service


@pytest.fixture
def narrow(narrow_service: Service) -> Service:
    """That service, when nothing is left of the clients of the test before."""
    wait_for_rest(narrow_service)
    return narrow_service


@contextmanager
def client(service: Service) -> Iterator[InteractStream]:
    """One client: a stream on a connection of its own."""
    with own_connection(service) as channel, InteractStream(AnnotationServiceStub(channel)) as stream:
        yield stream


def blank(side: int, shade: int = 0) -> pb.Image:
    return raw_image(np.full((side, side, 3), shade, np.uint8))


def test_a_client_with_many_streams_leaves_another_client_its_turns(sturdy):
    """Forty objects on ten streams of one connection want inferences without a pause; another client's click comes in
    between, and not after all of them.
    """
    over = threading.Event()
    answers: list[int] = []

    def flood(stream: InteractStream) -> None:
        stream.ask(BRIGHT)
        for number in range(4):
            stream.send(prompt("steady", (20, 30, POSITIVE), object_id=str(number)))
        number = 0
        while not over.is_set():
            reply = stream.receive(150)
            answers.append(departure(reply.timing))
            number += 1
            point = (10 + number % 40, 10 + number % 37, POSITIVE)
            stream.send(prompt("steady", point, object_id=reply.object_id))

    with ExitStack() as stack:
        greedy = AnnotationServiceStub(stack.enter_context(own_connection(sturdy)))
        streams = [stack.enter_context(InteractStream(greedy)) for _ in range(10)]
        modest = stack.enter_context(client(sturdy))
        modest.ask(BRIGHT)
        floods = [threading.Thread(target=flood, args=(stream,), daemon=True) for stream in streams]
        for thread in floods:
            thread.start()
        wait_for(lambda: len(answers) > 10, 150, sturdy)
        clicks = []
        for number in range(10):
            clicks.append(modest.ask(prompt("steady", (20 + number, 13, POSITIVE), object_id=str(number)), 150).timing)
            time.sleep(0.2)  # an annotator looks at the outline
        over.set()
        for thread in floods:
            thread.join(150)
    # At the first click the client is not known yet.
    between = [sum(receipt(click) <= answer < departure(click) for answer in answers) for click in clicks[1:]]
    assert statistics.median(between) <= ANSWERS_BETWEEN, between


def test_an_idle_stream_gives_its_image_up_before_another_client_is_refused(narrow):
    """Sixty-four mebibytes hold two images of 2600 x 2600 pixels with their pyramids, and not three."""
    with ExitStack() as stack:
        hoarder = AnnotationServiceStub(stack.enter_context(own_connection(narrow)))
        idle = [stack.enter_context(InteractStream(hoarder)) for _ in range(2)]
        for shade, stream in enumerate(idle):
            assert stream.ask(blank(2600, shade)).image.width == 2600
        other = stack.enter_context(client(narrow))
        wait_for(lambda: other.ask(blank(2600, 255)).HasField("image"), 60, narrow)
        replies = [stream.ask(prompt("shade", (1, 1, POSITIVE))) for stream in idle]
        assert sorted(map(status, replies), key=str) == [GIVEN_UP, grpc.StatusCode.OK]
        refused = next(reply for reply in replies if reply.HasField("error"))
        reason = detail_of(refused.error, error_details_pb2.ErrorInfo)
        assert (reason.reason, reason.domain) == ("IMAGE_GIVEN_UP", "polywand")
        loser = idle[replies.index(refused)]
        assert loser.ask(pb.Forget(all=True)).forgotten.objects == 0  # they went with the image
        assert loser.ask(blank(100)).image.width == 100
        assert loser.ask(prompt("shade", (1, 1, POSITIVE))).HasField("segmentation")


def test_images_that_find_no_room_are_told_what_is_full_and_when_to_come_back(narrow, repository):
    """Two images fill what there is for images, and their streams are at work."""
    with ExitStack() as stack:
        for number in range(2):
            busy = stack.enter_context(client(narrow))
            busy.ask(blank(2600, number))
            busy.send(prompt("shade", (1, 1, POSITIVE), (2, 2, POSITIVE), object_id=str(number)))  # a minute's work
        began = journal_of(repository, "shade")
        wait_for(lambda: count(began, "began"), 60, narrow)
        reply = stack.enter_context(client(narrow)).ask(blank(2600, 255))
        assert status(reply) is FULL
        assert "at most 64 MiB of images" in reply.error.message
        assert detail_of(reply.error, error_details_pb2.QuotaFailure).violations[0].subject == "images"
        assert detail_of(reply.error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1


def test_an_active_stream_keeps_what_it_remembers_however_many_streams_there_are(narrow):
    """Four mebibytes for the maps of all streams, and two hundred streams without any: undo is answered from memory."""
    with ExitStack() as stack:
        active = stack.enter_context(client(narrow))
        active.ask(BRIGHT)
        first = prompt("shade", (1, 1, POSITIVE))
        assert active.ask(first).timing.inferences == 1
        for _ in range(2):
            crowd = AnnotationServiceStub(stack.enter_context(own_connection(narrow)))
            for _ in range(100):
                stack.enter_context(InteractStream(crowd)).send(BRIGHT)
        wait_for(lambda: narrow.metric(INTERACT_STREAMS) == 201, 60, narrow)
        assert active.ask(prompt("shade", (2, 2, POSITIVE))).timing.inferences == 1
        assert active.ask(first).timing.inferences == 0
        assert 0 < narrow.metric(MASK_MEMORY) <= 4 * MEBIBYTE


def test_answers_that_are_not_read_are_bounded_over_all_streams(narrow):
    """Six streams never read their answers of a megabyte: with two mebibytes for all, some of them are ended, and are
    told why; a client that reads is answered all the while.
    """
    never, reading = threading.Event(), threading.Event()
    with ExitStack() as stack:
        reader = stack.enter_context(client(narrow))
        reader.ask(BRIGHT)
        talks = []
        ended_before = ended(narrow)
        for _ in range(6):
            stub = AnnotationServiceStub(stack.enter_context(own_connection(narrow, *NARROW)))
            prompts = [prompt("shade", (1, 1, POSITIVE), object_id=str(i), tolerance=0, mask=True) for i in range(10)]
            talks.append(Talk(stub, unfinished([comb(512), *prompts], never), before_reading=reading.wait))
        wait_for(lambda: ended(narrow) > ended_before, 120, narrow)
        for number in range(20):
            assert reader.ask(prompt("shade", (3 + number, 3, POSITIVE))).HasField("segmentation")
            assert narrow.metric(REPLY_MEMORY) < 8 * MEBIBYTE
        reading.set()
        wait_for(lambda: any(talk.ended for talk in talks), 60, narrow)
        assert {talk.end() for talk in talks if talk.ended} == {FULL}
        for talk in talks:
            talk.call.cancel()
        wait_for(lambda: narrow.metric(REPLY_MEMORY) == 0, 60, narrow)


def ended(service: Service) -> float:
    """How many Interact streams the service has ended for what they took."""
    return sum(
        service.metric(f'polywand_grpc_requests_total{{code="{code}",method="{INTERACT}"}}')
        for code in ("RESOURCE_EXHAUSTED", "CANCELLED")  # read or not
    )


def test_calls_beyond_the_line_are_told_to_come_back(narrow, repository):
    """One call in work, two in line: of eight others six are refused at once."""
    journal = journal_of(repository, "snail")
    began = count(journal, "began")
    with own_connection(narrow) as channel:
        stub = AnnotationServiceStub(channel)
        request = pb.DetectRequest(model="snail", image=BRIGHT)
        first = stub.Detect.future(request)
        wait_for(lambda: count(journal, "began") > began, 60, narrow)
        others = [stub.Detect.future(request) for _ in range(8)]
        wait_for(lambda: sum(call.done() for call in others) == 6, 60, narrow)
        for call in others:
            if call.done():
                assert call.code() is FULL
                refusal = rpc_status.from_call(call)
                assert detail_of(refusal, error_details_pb2.QuotaFailure).violations[0].subject == "calls with an image"
                assert detail_of(refusal, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
        assert not first.done()
        for call in (first, *others):
            call.cancel()
        with client(narrow) as stream:
            assert stream.ask(BRIGHT).image.width == 64


def test_images_that_wait_to_be_decoded_are_bounded_over_all_streams(repository, tmp_path):
    """Of 32 mebibytes one client may have half: two frames of seven wait for a slow one; more are refused, not kept."""
    options = ("--bodies-mebibytes=32", "--max-image-mebibytes=8", "--infer-timeout-seconds=2")
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}", *options) as service,
        ExitStack() as stack,
    ):
        service.wait_ready("snail")
        frame = pb.DetectRequest(model="snail", image=blank(1500))
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        end = threading.Event()
        stack.callback(end.set)
        frames = [pb.DetectStreamRequest(frame_id=number, request=frame) for number in range(4)]
        calls = [stub.DetectStream(unfinished(frames, end)) for _ in range(2)]
        refused: list[Status] = []  # in its turn: a stream's frames are answered in order, and the first ones are slow

        def read(call) -> None:
            with suppress(grpc.RpcError):  # cancelled in the end
                refused.extend(reply.error for reply in call if reply.error.code == FULL.value[0])

        for call in calls:
            threading.Thread(target=read, args=(call,), daemon=True).start()
        wait_for(lambda: refused, 60, service)
        assert detail_of(refused[0], error_details_pb2.QuotaFailure).violations[0].subject == "images that wait"
        assert service.metric(BODY_MEMORY) <= 32 * MEBIBYTE
        for call in calls:
            call.cancel()
        wait_for(lambda: service.metric(BODY_MEMORY) == 0, 60, service)

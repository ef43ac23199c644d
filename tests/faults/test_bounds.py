"""What one client sends is bounded before it costs anything, and what it sends cannot be worked on for ever."""

import itertools
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import cv2
import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_server.rpc import wire
from tests.faults.clients import BRIGHT, own_connection
from tests.faults.footprint import children, unique_bytes
from tests.faults.hostile import (
    H2Connection,
    bmp_of_run_lengths,
    headers,
    jpeg_of_scans,
    message,
    png_of_zeros,
    reset,
)
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt

MEBIBYTE = 2**20
INTERACT = "/polywand.v1.AnnotationService/Interact"
LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
# Of a service at rest: its children's parent, and one child that waits for work.
RESTING_WORKERS = 2


@pytest.fixture(scope="module")
def bounded(repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that lets large images in, and works on each for a second at most."""
    options = (f"--model-repository={repository}", "--max-image-pixels=100000000", "--work-cpu-seconds=1")
    with running_service(tmp_path_factory.mktemp("bounded") / "log", *options) as service:
        service.wait_ready("quick", "shade")
        yield service


@pytest.fixture
def stub(bounded: Service) -> Iterator[AnnotationServiceStub]:
    with own_connection(bounded) as channel:
        yield AnnotationServiceStub(channel)


def workers(service: Service) -> list[psutil.Process]:
    """The processes that work on large input, and their parent."""
    found = []
    for child in children(service):
        with suppress(psutil.Error):  # it has just ended
            if "polywand_server.workers.spawner" in child.cmdline():
                found.append(child)
    return found


def detail_of(status, kind: type[Message]) -> Message:
    """The detail of this kind in a google.rpc.Status."""
    found = kind()
    assert any(detail.Unpack(found) for detail in status.details), status
    return found


def seed_of_nothing(polygons: int) -> pb.Prompt:
    """A prompt whose seed has so many polygons without a vertex: two bytes each."""
    parts = [pb.Polygon()] * polygons
    return pb.Prompt(model="quick", seed=pb.SeedMask(polygons=pb.PolygonSet(polygons=parts)))


@pytest.mark.parametrize(
    ("name", "hostile", "limit"),
    [
        ("polygons", seed_of_nothing(200_000), "100000"),
        ("few thousand polygons", seed_of_nothing(6_000), "5000"),
        ("points", pb.Prompt(model="quick", points=[pb.Point()] * 200_000), "100000"),
        ("many points", pb.Prompt(model="quick", points=[pb.Point()] * 12_000), "10000"),
        ("name", pb.Prompt(model="quick", object_id="x" * 3 * MEBIBYTE), str(wire.MAX_REST_BYTES)),
    ],
    ids=lambda value: value if isinstance(value, str) and not value.isdecimal() else "",
)
def test_a_message_that_would_unpack_to_much_is_refused_by_its_limit(bounded, stub, name, hostile, limit):
    with InteractStream(stub) as stream:
        stream.ask(BRIGHT)
        stream.ask(prompt("shade", (1, 1, POSITIVE)))
        before = unique_bytes(bounded)
        sequence = stream.send(hostile)
        reply = stream.receive()
        assert reply.sequence == sequence
        assert reply.error.code in (LARGE, grpc.StatusCode.INVALID_ARGUMENT.value[0]), reply
        assert limit in reply.error.message
        assert detail_of(reply.error, error_details_pb2.BadRequest).field_violations
        assert unique_bytes(bounded) - before < 64 * MEBIBYTE
        assert stream.ask(prompt("shade", (2, 2, POSITIVE))).HasField("segmentation")


def test_labels_without_end_are_refused_by_their_limit(stub):
    request = pb.DetectRequest(
        model="snail", image=BRIGHT, labels=[pb.LabelMapping(model_label=f"label {i}", label="x") for i in range(3000)]
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 2000" in caught.value.details()


def test_a_name_that_is_refused_for_its_length_is_not_sent_back(stub):
    with InteractStream(stub) as stream:
        stream.ask(BRIGHT)
        for length in (300, MEBIBYTE):
            reply = stream.ask(pb.Prompt(model="shade", object_id="x" * length))
            assert "at most 128 bytes" in reply.error.message
            assert not reply.object_id
            assert reply.ByteSize() < 1000


def test_compressed_messages_are_refused(bounded, stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(pb.DetectRequest(model="nanodet", image=BRIGHT), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


images = st.one_of(
    st.builds(pb.Image, encoded=st.binary(max_size=5000)),
    st.builds(
        lambda data, width: pb.Image(raw=pb.RawImage(data=data, width=width, height=3, format=pb.PIXEL_FORMAT_RGB8)),
        st.binary(min_size=1, max_size=5000),
        st.integers(0, 9),
    ),
)


@given(
    images,
    st.text(max_size=5),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_an_image_set_apart_leaves_the_message_as_it_was(image, model, labels, frame_id):
    mappings = [pb.LabelMapping(model_label=theirs, label=ours) for theirs, ours in labels.items()]
    frame = pb.DetectStreamRequest(
        frame_id=frame_id, request=pb.DetectRequest(model=model, image=image, labels=mappings, max_detections=7)
    )
    parts = wire.split(frame.SerializeToString(), wire.DETECT_STREAM, 1000)
    rest = pb.DetectStreamRequest.FromString(parts.rest)
    assert parts.number == frame_id
    assert parts.image is not None
    assert rest.request.image.WhichOneof("source") == image.WhichOneof("source")
    if image.HasField("raw"):
        rest.request.image.raw.data = bytes(parts.image)
    else:
        rest.request.image.encoded = bytes(parts.image)
    assert rest == frame


def test_raw_pixels_without_data_do_not_get_the_bytes_of_a_file_before_them(bounded):
    pixels = pb.RawImage(width=40, height=40, format=pb.PIXEL_FORMAT_RGB8)
    parts = [pb.Image(encoded=bytes(4800)), pb.Image(raw=pixels)]
    request = b"".join(pb.DetectRequest(model="snail", image=part).SerializeToString() for part in parts)
    with own_connection(bounded) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/polywand.v1.AnnotationService/Detect")(request)
    assert "are 4800 bytes, and 0 came" in caught.value.details()


@given(st.lists(st.builds(pb.Point, x=st.floats(width=32), y=st.floats(width=32)), max_size=20), st.integers(0, 60))
def test_fields_are_counted_as_protobuf_reads_them(points, most):
    """Each point is a field, and so is each of its coordinates that is not zero."""
    data = pb.Prompt(points=points).SerializeToString()
    fields = sum(1 + len(point.ListFields()) for point in points)
    budget = wire._Budget(most)
    if fields > most:
        with pytest.raises(wire.TooManyFieldsError):
            wire._count(memoryview(data), pb.Prompt.DESCRIPTOR, budget)
    else:
        wire._count(memoryview(data), pb.Prompt.DESCRIPTOR, budget)
        assert budget.left == most - fields


HOSTILE_FILES = {
    "JPEG of 2000 scans": (lambda: jpeg_of_scans(800, 800, 2000), "500 scans", "IMAGE_TOO_LARGE"),
    "PNG with a side of a million": (lambda: png_of_zeros(1_000_000, 1), "65535", "IMAGE_TOO_LARGE"),
    "BMP of run lengths": (lambda: bmp_of_run_lengths(1000, 1000), "run-length", "IMAGE_UNREADABLE"),
    "JPEG of 400 scans over 100 megapixels": (
        lambda: jpeg_of_scans(10_000, 10_000, 400),
        *("processor time", "IMAGE_TOO_LARGE"),
    ),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_file_that_would_take_long_is_refused_by_its_limit(stub, name):
    make, limit, reason = HOSTILE_FILES[name]
    with InteractStream(stub) as stream:
        reply = stream.ask(pb.Image(encoded=make()), seconds=120)
        assert reply.HasField("error"), reply
        assert limit in reply.error.message
        assert detail_of(reply.error, error_details_pb2.BadRequest).field_violations[0].field == "image.encoded"
        assert detail_of(reply.error, error_details_pb2.ErrorInfo).reason == reason
        assert stream.ask(BRIGHT).image.width == 64


def test_decoding_stops_when_the_client_has_gone(repository, tmp_path):
    """With ten minutes of processor time allowed, a child works on; when its client goes, it ends."""
    options = (f"--model-repository={repository}", "--work-cpu-seconds=600")
    with running_service(tmp_path / "log", *options) as service:
        service.wait_ready("shade")
        wait_for(lambda: len(workers(service)) == RESTING_WORKERS, 60, service)
        with own_connection(service) as channel, InteractStream(AnnotationServiceStub(channel)) as stream:
            stream.send(pb.Image(encoded=jpeg_of_scans(10_000, 10_000, 450)))
            wait_for(lambda: any(cpu_seconds(child) > 0.5 for child in workers(service)[1:]), 60, service)
        wait_for(lambda: len(workers(service)) == RESTING_WORKERS, 60, service)
        assert all(cpu_seconds(child) < 0.5 for child in workers(service)[1:])


def test_an_ordinary_photo_is_decoded_without_a_child(bounded, stub):
    photo = np.random.default_rng(1).integers(0, 255, (3000, 4000, 3), np.uint8)
    with InteractStream(stub) as stream:
        stream.ask(BRIGHT)
        wait_for(lambda: len(workers(bounded)) == RESTING_WORKERS, 60, bounded)
        before = {process.pid for process in workers(bounded)}
        jpeg = cv2.imencode(".jpg", cv2.blur(photo, (9, 9)))[1].tobytes()
        assert stream.ask(pb.Image(encoded=jpeg)).image.width == 4000
        assert {process.pid for process in workers(bounded)} == before
        png = cv2.imencode(".png", photo[:1500])[1].tobytes()
        assert stream.ask(pb.Image(encoded=png)).image.width == 4000
        assert {process.pid for process in workers(bounded)} != before


def cpu_seconds(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


def test_children_that_are_killed_cost_their_own_request_alone(bounded, stub):
    """The next image is decoded, and the service says why this one was not."""
    png = png_of_zeros(3000, 3000)
    with InteractStream(stub) as stream:
        assert stream.ask(pb.Image(encoded=png)).image.width == 3000
        for _ in range(3):
            wait_for(lambda: len(workers(bounded)) == RESTING_WORKERS, 60, bounded)
            bounded.process.send_signal(signal.SIGSTOP)  # so that it notices their end and the next image together
            for process in workers(bounded):
                process.kill()
            stream.send(pb.Image(encoded=png))
            time.sleep(0.1)
            bounded.process.send_signal(signal.SIGCONT)
            reply = stream.receive()
            for _ in range(100):
                if reply.HasField("image"):
                    break
                assert reply.error.code in (grpc.StatusCode.UNAVAILABLE.value[0], LARGE), reply
                time.sleep(0.1)
                reply = stream.ask(pb.Image(encoded=png))
            assert reply.image.width == 3000
        wait_for(lambda: len(workers(bounded)) == RESTING_WORKERS, 60, bounded)


def test_one_connection_opens_so_many_streams_and_the_next_one_waits(repository, tmp_path):
    with running_service(tmp_path / "log", f"--model-repository={repository}", "--max-connection-streams=5") as service:
        service.wait_ready("shade")
        with ExitStack() as stack:
            stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
            first = [InteractStream(stub) for _ in range(5)]
            for stream in first:
                stack.enter_context(stream)
                assert stream.ask(BRIGHT).image.width == 64
            sixth = stack.enter_context(InteractStream(stub))
            sixth.send(BRIGHT)
            assert first[1].ask(prompt("shade", (1, 1, POSITIVE))).HasField("segmentation")
            assert sixth.pending() == 0
            first[0].finish()
            assert sixth.receive().image.width == 64


def test_calls_that_are_reset_at_once_take_none_from_others(bounded):
    """Ten thousand calls begun and reset on forty connections: another client's calls are all answered meanwhile."""
    over = threading.Event()
    host, port = bounded.target.rsplit(":", 1)

    def attack() -> None:
        for _ in range(40):
            connection = H2Connection(host, int(port))
            for stream in itertools.islice(itertools.count(1, 2), 250):
                connection.send(headers(stream, INTERACT), message(stream, b"\x08\x01"), reset(stream))
            connection.close()
        over.set()

    attacker = threading.Thread(target=attack, daemon=True)
    attacker.start()
    for _ in range(10):
        with own_connection(bounded) as channel:
            stub = AnnotationServiceStub(channel)
            assert len(stub.ListModels(pb.ListModelsRequest()).models) == 4
            with InteractStream(stub) as stream:
                assert stream.ask(BRIGHT).image.width == 64
    assert over.wait(60)


def test_messages_that_never_become_whole_are_bounded_over_all_streams(repository, tmp_path):
    """Fifteen streams announce a message of 24 MB each and send most of it: more than 64 MiB of that is not kept."""
    options = (f"--model-repository={repository}", "--bodies-mebibytes=64")
    with running_service(tmp_path / "log", *options) as service:
        service.wait_ready("shade")
        with own_connection(service) as channel, InteractStream(AnnotationServiceStub(channel)) as other:
            other.ask(BRIGHT)
            part = bytes(20 * MEBIBYTE)
            before = unique_bytes(service)
            host, port = service.target.rsplit(":", 1)
            connections = [H2Connection(host, int(port)) for _ in range(5)]
            sent = 0
            for connection in connections:
                for stream in range(1, 7, 2):
                    connection.send(headers(stream, INTERACT))
                    sent += connection.announce(stream, 24 * MEBIBYTE, part)
            assert sent > 64 * MEBIBYTE
            wait_for(lambda: re.search("ending the calls of", service.log.read_text()), 60, service)
            wait_for(lambda: unique_bytes(service) - before < 200 * MEBIBYTE, 60, service)
            assert other.ask(prompt("shade", (1, 1, POSITIVE))).HasField("segmentation")
            for connection in connections:
                connection.close()


def test_the_service_ends_in_time_in_the_middle_of_hostile_work(repository, tmp_path):
    """With drains of one second, four decoders at work, and clients that stay: the process is gone soon after."""
    options = (
        f"--model-repository={repository}",
        "--work-cpu-seconds=600",
        "--drain-seconds=1",
        "--worker-processes=4",
    )
    with running_service(tmp_path / "log", *options) as service, ExitStack() as stack:
        service.wait_ready("shade")
        for number in range(4):  # none waits for another's: neither for the same picture, nor for its memory
            hostile = pb.Image(encoded=jpeg_of_scans(6000, 6000, 450 + number))
            stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
            stack.enter_context(InteractStream(stub)).send(hostile)
        wait_for(lambda: sum(cpu_seconds(child) > 0.2 for child in workers(service)[1:]) >= 2, 60, service)
        left = [*workers(service)]
        service.process.terminate()
        service.process.wait(30)  # the decoders would take minutes
        wait_for(lambda: not any(process.is_running() for process in left), 30)

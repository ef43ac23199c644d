"""What GetServerInfo promises: limits as the errors name them, and what is really read and written."""

import queue
import signal
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

import polywand_server
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.pictures.writers import HEIC_TURNED, HEIGHT, WIDTH, colours, grey, png, saved, tiff
from tests.running import running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

METHOD = "/polywand.v1.AnnotationService/GetServerInfo"
FILES = {
    "image/jpeg": lambda: saved(colours(), "JPEG"),
    "image/png": lambda: png(colours()),
    "image/webp": lambda: saved(colours(), "WEBP"),
    "image/tiff": lambda: tiff(colours(), 2),
    "image/bmp": lambda: saved(colours(), "BMP"),
    "image/gif": lambda: saved(grey(), "GIF"),
    "image/avif": lambda: saved(colours(), "AVIF"),
    "image/heic": lambda: HEIC_TURNED,
}
ALWAYS = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif")


def info(stub) -> pb.GetServerInfoResponse:
    return stub.GetServerInfo(pb.GetServerInfoRequest())


def test_a_server_that_is_ready_tells_its_version_state_and_detector(puppet_stub):
    said = info(puppet_stub)
    assert said.version == polywand_server.__version__
    assert (said.state, said.state_message) == (pb.SERVER_STATE_READY, "")
    assert said.capabilities.default_detector == "nanodet"
    assert list(said.capabilities.output_forms) == [form for form in pb.OutputForm.values() if form]


def test_files_of_every_type_that_it_names_are_read(puppet_stub):
    said = info(puppet_stub).capabilities.image_types
    assert set(said) >= set(ALWAYS)
    with InteractStream(puppet_stub) as stream:
        for name in said:
            image = stream.ask(pb.Image(encoded=FILES[name]())).image
            assert {image.width, image.height} == {WIDTH, HEIGHT}, name


def test_pixels_of_every_format_that_it_names_are_read(puppet_stub):
    size = {pb.PIXEL_FORMAT_GRAY8: 1, pb.PIXEL_FORMAT_GRAY16: 2, pb.PIXEL_FORMAT_RGBA8: 4}
    with InteractStream(puppet_stub) as stream:
        for number in info(puppet_stub).capabilities.pixel_formats:
            raw = pb.RawImage(data=bytes(4 * size.get(number, 3)), width=2, height=2, format=number)
            assert stream.ask(pb.Image(raw=raw)).image.width == 2, pb.PixelFormat.Name(number)


def too_much(limits: pb.ServerLimits) -> Iterator[tuple[str, str, pb.Image | pb.Prompt]]:
    """Messages of a stream that exceed a limit by one: the limit, the field of the error, and the message."""
    side = pb.RawImage(data=b"x", width=limits.image_side + 1, height=1, format=pb.PIXEL_FORMAT_RGB8)
    yield "image_side", "image.raw", pb.Image(raw=side)
    pixels = pb.RawImage(data=b"x", width=limits.image_pixels // 2 + 1, height=2, format=pb.PIXEL_FORMAT_RGB8)
    yield "image_pixels", "image.raw", pb.Image(raw=pixels)
    yield "prompt_points", "prompt.points", prompt("disk", *[(1, 1, POSITIVE)] * (limits.prompt_points + 1))
    ring = pb.Polygon(exterior=pb.Ring(coordinates=[0, 0, 9, 0, 9, 9]))
    rings = pb.PolygonSet(polygons=[ring] * (limits.seed_rings + 1))
    yield "seed_rings", "prompt.seed.polygons", pb.Prompt(model="disk", seed=pb.SeedMask(polygons=rings))
    line = pb.Polygon(exterior=pb.Ring(coordinates=[0.0] * 2 * (limits.seed_vertices + 1)))
    vertices = pb.SeedMask(polygons=pb.PolygonSet(polygons=[line]))
    yield "seed_vertices", "prompt.seed.polygons", pb.Prompt(model="disk", seed=vertices)


def limit_of(status: status_pb2.Status) -> str:
    """Which limit an error names for programs."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), status
    return info.metadata["limit"]


def test_the_error_of_a_message_beyond_a_limit_names_the_limit_that_the_server_tells(puppet_stub, astronaut):
    limits = info(puppet_stub).limits
    with InteractStream(puppet_stub) as stream:
        stream.ask(raw_image(astronaut))
        for name, field, message in too_much(limits):
            error = stream.ask(message).error
            assert error.message.startswith(field)
            assert str(getattr(limits, name)) in error.message
            assert limit_of(error) == name
    for name, options in (
        ("detections", {"max_detections": limits.detections + 1}),
        ("labels", {"labels": [pb.LabelMapping(model_label="thing")] * (limits.labels + 1)}),
    ):
        with pytest.raises(grpc.RpcError, match=str(getattr(limits, name))) as caught:
            puppet_stub.Detect(pb.DetectRequest(model="finder", image=raw_image(astronaut), **options))
        assert limit_of(rpc_status.from_call(caught.value)) == name
    prompts = [prompt("disk", (1, 1, POSITIVE))] * (limits.segment_prompts + 1)
    with pytest.raises(grpc.RpcError, match=str(limits.segment_prompts)) as caught:
        puppet_stub.Segment(pb.SegmentRequest(image=raw_image(astronaut), prompts=prompts))
    assert limit_of(rpc_status.from_call(caught.value)) == "segment_prompts"


def test_settings_are_told_and_it_answers_while_triton_is_away(tmp_path):
    options = (
        "--triton-url=127.0.0.1:9",
        "--max-image-mebibytes=3",
        "--max-image-pixels=9999999999",
        "--max-objects=7",
        "--prompt-timeout-seconds=1.5",
    )
    with running_service(tmp_path / "log", *options) as service, grpc.insecure_channel(service.target) as channel:
        said = info(annotation_pb2_grpc.AnnotationServiceStub(channel))
        assert (said.state, said.state_message) == (pb.SERVER_STATE_STARTING, "Triton does not answer")
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert said.capabilities.default_detector == ""
    limits = said.limits
    assert (limits.image_bytes, limits.message_bytes) == (3 << 20, (3 << 20) * 5 // 4)
    assert limits.image_pixels == 2**32 - 1  # what the field can hold
    assert (limits.stream_objects, limits.prompt_ms) == (7, 1500)


def test_a_call_that_is_answered_during_a_drain_says_so(tmp_path):
    """gRPC takes no new calls during a drain; this one has begun before."""
    messages: queue.Queue[pb.GetServerInfoRequest | None] = queue.Queue()
    with (
        running_service(tmp_path / "log", "--triton-url=127.0.0.1:9") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        late = channel.stream_unary(
            METHOD, pb.GetServerInfoRequest.SerializeToString, pb.GetServerInfoResponse.FromString
        ).future(iter(messages.get, None))
        info(annotation_pb2_grpc.AnnotationServiceStub(channel))  # on the same connection, so the other has begun
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in service.log.read_text(), 30, service)
        messages.put(pb.GetServerInfoRequest())
        messages.put(None)
        said = late.result(30)
        assert (said.state, said.state_message) == (pb.SERVER_STATE_DRAINING, "draining")
        assert service.process.wait(30) == 0

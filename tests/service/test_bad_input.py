"""Bad input over the wire: a typed error that names the field and the limit, and the stream lives on."""

import struct
import zlib

import cv2
import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from tests.running import WAND_VERSIONS, wait_for
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

NAN, INFINITY = float("nan"), float("inf")


def encoded(data: bytes) -> pb.Image:
    return pb.Image(encoded=data)


def jpeg(pixels) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost no data: a decompression bomb's head."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def violation(status) -> error_details_pb2.BadRequest.FieldViolation:
    request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(request)
    return request.field_violations[0]


PERSON = pb.LabelMapping(model_label="person", label="human")
PERSON = pb.LabelMapping(model_label="person", label="human")
CARR = [pb.LabelMapping(model_label="carr", label="vehicle")]
BAD_IMAGES = {
    "not an image": (encoded(b"I am no image at all"), code_pb2.INVALID_ARGUMENT, "image.encoded", "not an image"),
    "nothing": (encoded(b""), code_pb2.INVALID_ARGUMENT, "image.encoded", "empty"),
    "no source": (pb.Image(), code_pb2.INVALID_ARGUMENT, "image", "needed"),
    "truncated JPEG": (None, code_pb2.INVALID_ARGUMENT, "image.encoded", "truncated"),
    "bomb": (encoded(png_header(60000, 60000)), code_pb2.RESOURCE_EXHAUSTED, "image.encoded", "at most 30000000"),
    "raw bomb": (
        pb.Image(raw=pb.RawImage(data=b"x", width=2**31, height=2**31, format=pb.PIXEL_FORMAT_RGB8)),
        code_pb2.RESOURCE_EXHAUSTED,
        "image.raw",
        "at most 30000000",
    ),
    "zero size": (
        pb.Image(raw=pb.RawImage(width=0, height=4, format=pb.PIXEL_FORMAT_RGB8)),
        code_pb2.INVALID_ARGUMENT,
        "image.raw",
        "at least one",
    ),
    "zero size PNG": (encoded(png_header(0, 0)), code_pb2.INVALID_ARGUMENT, "image.encoded", ""),
    "raw of the wrong length": (
        pb.Image(raw=pb.RawImage(data=bytes(10), width=2, height=2, format=pb.PIXEL_FORMAT_RGB8)),
        code_pb2.INVALID_ARGUMENT,
        "image.raw.data",
        "are 12 bytes, and 10 came",
    ),
    "unknown pixel format": (
        pb.Image(raw=pb.RawImage(data=bytes(12), width=2, height=2, format=99)),
        code_pb2.INVALID_ARGUMENT,
        "image.raw.format",
        "RGB8",
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_refused_and_the_one_before_it_stays(stub, astronaut, case):
    image, code, field, text = BAD_IMAGES[case]
    if image is None:
        whole = jpeg(astronaut)
        image = encoded(whole[: len(whole) // 2])
    with InteractStream(stub) as stream:
        assert stream.ask(raw_image(astronaut)).image.width == 512
        reply = stream.ask(image)
        assert reply.error.code == code
        assert violation(reply.error).field == field
        assert text in violation(reply.error).description
        good = stream.ask(prompt("wand_click", (220, 130, POSITIVE)))
        assert good.segmentation.shape.polygons


@pytest.mark.parametrize("case", ["not an image", "truncated JPEG", "bomb", "zero size"])
def test_detect_refuses_a_bad_image_with_the_same_code(stub, astronaut, case):
    image, code, field, _ = BAD_IMAGES[case]
    image = image or encoded(jpeg(astronaut)[:5000])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(pb.DetectRequest(model="nanodet", image=image))
    assert caught.value.code().value[0] == code
    assert violation(rpc_status.from_call(caught.value)).field == field


POINT = (220, 130, POSITIVE)

BAD_PROMPTS = {
    "left of the image": (
        prompt("wand_click", (-1, 5, POSITIVE)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points[0]",
        "0..512",
    ),
    "below the image": (
        prompt("wand_click", POINT, (5, 513, NEGATIVE)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points[1]",
        "0..512",
    ),
    "NaN": (prompt("wand_click", (NAN, 5, POSITIVE)), code_pb2.INVALID_ARGUMENT, "prompt.points[0]", "finite"),
    "infinite": (
        prompt("wand_click", (5, INFINITY, POSITIVE)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points[0]",
        "finite",
    ),
    "no label": (prompt("wand_click", (5, 5, 0)), code_pb2.INVALID_ARGUMENT, "prompt.points[0].label", "POSITIVE"),
    "inverted box": (
        prompt("wand_click", box=(100, 100, 50, 200)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.box",
        "x0 < x1",
    ),
    "empty box": (prompt("wand_click", box=(50, 50, 50, 90)), code_pb2.INVALID_ARGUMENT, "prompt.box", "x0 < x1"),
    "NaN in the box": (prompt("wand_click", box=(0, 0, NAN, 9)), code_pb2.INVALID_ARGUMENT, "prompt.box", "finite"),
    "box reaches outside": (
        prompt("wand_click", box=(400, 400, 600, 500)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.box",
        "0..512",
    ),
    "too many points": (
        prompt("wand_click", *[(index + 1, 5, POSITIVE) for index in range(63)]),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points",
        "at most 62",
    ),
    "far too many points": (
        prompt("wand_click", *[(5, 5, POSITIVE)] * 20000),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points",
        "at most 10000",
    ),
    "no extreme points read": (
        prompt("wand_click", (5, 5, EXTREME)),
        code_pb2.INVALID_ARGUMENT,
        "prompt.points",
        "no extreme points",
    ),
    "unknown model": (prompt("no_such_model", POINT), code_pb2.NOT_FOUND, "prompt.model", "wand_click"),
    "a version of no model": (
        prompt("", POINT, version=1),
        code_pb2.INVALID_ARGUMENT,
        "prompt.version",
        "needs the name of a model",
    ),
    "too many forms": (
        prompt("wand_click", POINT, forms=[pb.OUTPUT_FORM_RLE] * 101),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.forms",
        "at most 100",
    ),
    "long model": (prompt("m" * 257, POINT), code_pb2.INVALID_ARGUMENT, "prompt.model", "at most 256 bytes"),
    "unspecified form": (
        prompt("wand_click", POINT, forms=[pb.OUTPUT_FORM_UNSPECIFIED]),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.forms[0]",
        "0 is not a form",
    ),
    "unknown form": (
        prompt("wand_click", POINT, forms=[pb.OUTPUT_FORM_BOX, 99]),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.forms[1]",
        "POLYGONS, RLE, PNG or BOX",
    ),
    "unknown version": (
        prompt("wand_click", POINT, version=99),
        code_pb2.NOT_FOUND,
        "prompt.version",
        f"it has {', '.join(map(str, WAND_VERSIONS))}",
    ),
    "a detector": (prompt("nanodet", POINT), code_pb2.FAILED_PRECONDITION, "prompt.model", "Detect"),
    "threshold 0": (
        prompt("wand_click", POINT, threshold=0),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.threshold",
        "below 1",
    ),
    "threshold 1.5": (
        prompt("wand_click", POINT, threshold=1.5),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.threshold",
        "below 1",
    ),
    "threshold NaN": (
        prompt("wand_click", POINT, threshold=NAN),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.threshold",
        "below 1",
    ),
    "tolerance": (
        prompt("wand_click", POINT, tolerance=-1),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.tolerance",
        "1000",
    ),
    "max_points": (
        prompt("wand_click", POINT, max_points=2),
        code_pb2.INVALID_ARGUMENT,
        "prompt.output.max_points",
        "from 3",
    ),
    "long object id": (
        prompt("wand_click", POINT, object_id="x" * 129),
        code_pb2.INVALID_ARGUMENT,
        "prompt.object_id",
        "128",
    ),
}


@pytest.fixture(scope="module")
def living_stream(stub, astronaut):
    """One stream that has to survive every bad prompt."""
    with InteractStream(stub) as stream:
        assert stream.ask(raw_image(astronaut)).image.width == 512
        yield stream


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_gets_its_error_and_the_next_good_one_its_polygons(living_stream, case):
    bad, code, field, text = BAD_PROMPTS[case]
    reply = living_stream.ask(bad)
    assert reply.error.code == code, reply
    assert reply.object_id == ("" if case == "long object id" else bad.object_id)
    assert violation(reply.error).field == field
    assert text in violation(reply.error).description
    good = living_stream.ask(prompt("wand_click", POINT))
    assert good.segmentation.shape.polygons


def test_a_prompt_before_an_image_is_refused(stub, astronaut):
    with InteractStream(stub) as stream:
        reply = stream.ask(prompt("wand_click", POINT))
        assert reply.error.code == code_pb2.FAILED_PRECONDITION
        assert "image" in reply.error.message
        stream.ask(raw_image(astronaut))
        assert stream.ask(prompt("wand_click", POINT)).segmentation.shape.polygons


def test_a_request_without_a_message_is_refused(living_stream):
    living_stream.send_request(pb.InteractRequest(sequence=10_000))
    reply = living_stream.receive()
    assert reply.sequence == 10_000
    assert reply.error.code == code_pb2.INVALID_ARGUMENT


def test_a_decreasing_sequence_is_refused(stub, astronaut):
    with InteractStream(stub) as stream:
        stream.send(raw_image(astronaut), sequence=7)
        assert stream.receive().image.width == 512
        stream.send(prompt("wand_click", POINT), sequence=6)
        reply = stream.receive()
        assert violation(reply.error).field == "sequence"
        stream.send(prompt("wand_click", POINT), sequence=8)
        assert stream.receive().segmentation.shape.polygons


def test_an_image_over_the_byte_limit_is_refused_and_a_message_far_over_it_ends_only_its_own_stream(stub, astronaut):
    with InteractStream(stub) as other, InteractStream(stub) as stream:
        other.ask(raw_image(astronaut))
        reply = stream.ask(encoded(bytes(81 * 1024 * 1024)))
        assert reply.error.code == code_pb2.RESOURCE_EXHAUSTED
        assert f"at most {80 * 1024 * 1024}" in reply.error.message
        stream.send(encoded(bytes(101 * 1024 * 1024)))
        assert stream.receive_end() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert other.ask(prompt("wand_click", POINT)).segmentation.shape.polygons


BAD_DETECTIONS = {
    "unknown model": ({"model": "no_such_model"}, grpc.StatusCode.NOT_FOUND, "model"),
    "unknown version": ({"version": 9}, grpc.StatusCode.NOT_FOUND, "version"),
    "a version of no model": ({"model": "", "version": 1}, grpc.StatusCode.INVALID_ARGUMENT, "version"),
    "an interactor": ({"model": "wand_click"}, grpc.StatusCode.FAILED_PRECONDITION, "model"),
    "unknown label": (
        {"labels": CARR},
        grpc.StatusCode.INVALID_ARGUMENT,
        "labels[0].model_label",
    ),
    "unknown label on a bad image": (
        {"labels": CARR, "image": encoded(b"no image")},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[0].model_label"),
    ),
    "threshold above 1": ({"threshold": 1.01}, grpc.StatusCode.INVALID_ARGUMENT, "threshold"),
    "threshold below 0": ({"threshold": -0.01}, grpc.StatusCode.INVALID_ARGUMENT, "threshold"),
    "threshold NaN": ({"threshold": NAN}, grpc.StatusCode.INVALID_ARGUMENT, "threshold"),
    "a label without a name": (
        {"labels": [PERSON, pb.LabelMapping(label="x")]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[1].model_label"),
    ),
    "a label twice": (
        {"labels": [PERSON, pb.LabelMapping(model_label="tie"), pb.LabelMapping(model_label="person")]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[2].model_label"),
    ),
    "threshold of a label above 1": (
        {"labels": [PERSON, pb.LabelMapping(model_label="tie", threshold=1.01)]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[1].threshold"),
    ),
    "threshold of a label below 0": (
        {"labels": [pb.LabelMapping(model_label="tie", threshold=-0.01)]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[0].threshold"),
    ),
    "threshold NaN of a label": (
        {"labels": [pb.LabelMapping(model_label="tie", threshold=NAN)]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[0].threshold"),
    ),
    "long label of the client": (
        {"labels": [pb.LabelMapping(model_label="person", label="x" * 257)]},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels[0].label"),
    ),
    "too many labels": (
        {"labels": [PERSON] * 2001},
        *(grpc.StatusCode.INVALID_ARGUMENT, "labels"),
    ),
    "no detections": ({"max_detections": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_detections"),
}


@pytest.mark.parametrize("case", BAD_DETECTIONS)
def test_a_bad_detection_names_its_field(stub, case):
    change, code, field = BAD_DETECTIONS[case]
    image = raw_image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(pb.DetectRequest(**{"model": "nanodet", "image": image} | change))
    assert caught.value.code() == code
    assert violation(rpc_status.from_call(caught.value)).field == field


@pytest.mark.parametrize("method", ["Interact", "DetectStream"])
def test_bytes_that_are_no_message_end_their_stream_with_an_error(channel, method):
    call = channel.stream_stream(f"/polywand.v1.AnnotationService/{method}")(iter([bytes([255] * 4)]), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_very_long_name_is_refused_with_a_readable_error(stub, astronaut):
    for change in ({"model": "a" * 10_000}, {"labels": [pb.LabelMapping(model_label="x" * 10_000, label="y")]}):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Detect(pb.DetectRequest(**{"model": "nanodet", "image": raw_image(astronaut)} | change))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 256 bytes" in caught.value.details()


@pytest.mark.parametrize("method", ["Detect", "ListModels"])
def test_bytes_that_are_no_message_are_refused(channel, method):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/polywand.v1.AnnotationService/{method}")(b"\xff\xff\xff")
    status = rpc_status.from_call(caught.value)
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert violation(status).field == "message"
    assert "not a message of the contract" in status.message


def test_bytes_that_are_no_message_are_counted(server, channel):
    """Of a method that nobody else calls wrongly: a call is counted a moment after its end."""
    method = "polywand.v1.AnnotationService/ListModels"
    sample = f'polywand_grpc_requests_total{{code="INVALID_ARGUMENT",method="{method}"}}'
    before = server.metric(sample)
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{method}")(b"\xff\xff\xff")
    wait_for(lambda: server.metric(sample) >= before + 5, 60, server)

"""Every error has a reason for programs, and the details that its code promises."""

import re
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from polywand_contract.raster import encode_rle
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from polywand_server.caller import begin, current
from polywand_server.errors import NotFoundError, Reason
from polywand_server.rpc.status import to_status, trailers
from tests.interactors import DISK, Gate, add_interactor
from tests.pictures.writers import colours, saved
from tests.puppets import IMAGES_MEBIBYTES
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
DOCUMENTED = re.findall(r"^\| ([A-Z_]+) \| `([A-Z_]+)` \|", DOCS.read_text(), re.MULTILINE)
CLICK = (20, 20, POSITIVE)
SMALL = raw_image(np.zeros((64, 64, 3), np.uint8))
# An outline with more parts than one may have.
DOTS = np.zeros((300, 300), np.uint8)
DOTS[1::3, 1::3] = 1
SERVICE = "polywand.v1.AnnotationService"
HEALTH = "grpc.health.v1.Health"
GARBAGE = bytes([255] * 4)
TRAILER_BYTES = 8 * 1024


@dataclass
class Failure:
    """An error as a client gets it. details: by the names of their types."""

    code: str
    details: dict[str, Message] = field(default_factory=dict)

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return self.details["ErrorInfo"]


def read(status: status_pb2.Status) -> Failure:
    """Read an error, and check what is promised of every one."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    failure = Failure(code.name)
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        assert name not in failure.details
        failure.details[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(failure.details[name])
    assert failure.info.domain == "polywand"
    assert (failure.code, failure.info.reason) in DOCUMENTED
    assert failure.details["RequestInfo"].request_id
    assert failure.code != "NOT_FOUND" or failure.details["ResourceInfo"].resource_type
    assert failure.code not in ("INVALID_ARGUMENT", "FAILED_PRECONDITION") or "BadRequest" in failure.details
    assert failure.code != "RESOURCE_EXHAUSTED" or len({"BadRequest", "QuotaFailure"} & failure.details.keys()) == 1
    assert (failure.code == "UNAVAILABLE" or "QuotaFailure" in failure.details) == ("RetryInfo" in failure.details)
    return failure


def of_call(call: Callable[[], object]) -> Failure:
    """Make a call that fails; return its error."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    sent = sum(len(key) + len(value) for key, value in caught.value.trailing_metadata())
    assert 3 * len(caught.value.details()) + sent < TRAILER_BYTES
    assert dict(caught.value.trailing_metadata())["x-request-id"]
    return read(rpc_status.from_call(caught.value))


def detection(**changes) -> pb.DetectRequest:
    return pb.DetectRequest(**{"model": "finder", "image": SMALL} | changes)


def raw(width: int, height: int, data: bytes = b"x") -> pb.Image:
    return pb.Image(raw=pb.RawImage(data=data, width=width, height=height, format=pb.PIXEL_FORMAT_RGB8))


PROMPTS = {
    "no label": (pb.Prompt(model="disk", points=[pb.Point(x=1, y=1)]), "INVALID_ARGUMENT", "INVALID_FIELD", {}),
    "outside": (prompt("disk", (65, 1, POSITIVE)), "INVALID_ARGUMENT", "INVALID_FIELD", {}),
    "no such model": (prompt("dusk", CLICK), "NOT_FOUND", "MODEL_NOT_FOUND", {}),
    "no such version": (
        prompt("disk", CLICK, version=7),
        *("NOT_FOUND", "VERSION_NOT_FOUND", {"model": "disk", "version": "7"}),
    ),
    "a detector": (prompt("finder", CLICK), "FAILED_PRECONDITION", "WRONG_MODEL_KIND", {"model": "finder"}),
    "does not load": (prompt("doomed", CLICK), "UNAVAILABLE", "MODEL_BROKEN", {"model": "doomed"}),
    "nan": (prompt("broken", CLICK), "INTERNAL", "INFERENCE_FAILED", {}),
    "no image": (pb.Image(encoded=b"I am no image"), "INVALID_ARGUMENT", "IMAGE_UNREADABLE", {}),
    "an empty image": (pb.Image(encoded=b""), "INVALID_ARGUMENT", "IMAGE_UNREADABLE", {}),
    "a long side": (raw(65_536, 1), "RESOURCE_EXHAUSTED", "IMAGE_TOO_LARGE", {"limit": "image_side"}),
    "many pixels": (raw(60_000, 60_000), "RESOURCE_EXHAUSTED", "IMAGE_TOO_LARGE", {"limit": "image_pixels"}),
    "more than all memory": (raw(3000, 3000, bytes(27_000_000)), "RESOURCE_EXHAUSTED", "IMAGE_TOO_LARGE", {}),
    "an image that the server does not hold": (pb.Image(digest=bytes(32)), "NOT_FOUND", "IMAGE_NOT_HELD", {}),
    "a digest of the wrong length": (pb.Image(digest=bytes(31)), "INVALID_ARGUMENT", "INVALID_FIELD", {}),
    "no source": (pb.Image(), "INVALID_ARGUMENT", "INVALID_FIELD", {}),
    "a long message": (
        pb.Prompt(model="disk", seed=pb.SeedMask(rle=pb.RleMask(counts="0" * 3_000_000))),
        *("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", {}),
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_an_error_in_a_stream_has_its_reason(puppet_stub, case):
    message, code, reason, metadata = PROMPTS[case]
    with InteractStream(puppet_stub) as stream:
        stream.ask(SMALL)
        failure = read(stream.ask(message).error)
        assert stream.ask(prompt("disk", CLICK)).segmentation.version == 1  # the stream goes on
    assert (failure.code, failure.info.reason, dict(failure.info.metadata)) == (code, reason, metadata)


@pytest.mark.parametrize("case", PROMPTS)
def test_an_error_of_one_prompt_or_of_the_image_of_a_call_has_its_reason(puppet_stub, case):
    message, code, reason, metadata = PROMPTS[case]
    click = prompt("disk", CLICK)
    if isinstance(message, pb.Image):
        failure = of_call(lambda: puppet_stub.Segment(pb.SegmentRequest(image=message, prompts=[click])))
    elif reason == "MESSAGE_TOO_LARGE":
        failure = of_call(lambda: puppet_stub.Segment(pb.SegmentRequest(image=SMALL, prompts=[message])))
    else:
        sound, wrong = puppet_stub.Segment(pb.SegmentRequest(image=SMALL, prompts=[click, message])).results
        assert sound.segmentation.version == 1
        failure = read(wrong.error)
    assert (failure.code, failure.info.reason, dict(failure.info.metadata)) == (code, reason, metadata)


CALLS = {
    "no such model": (detection(model="no such"), "NOT_FOUND", "MODEL_NOT_FOUND"),
    "an interactor": (detection(model="disk"), "FAILED_PRECONDITION", "WRONG_MODEL_KIND"),
    "no such version": (detection(version=9), "NOT_FOUND", "VERSION_NOT_FOUND"),
    "it fails": (detection(model="fails"), "INTERNAL", "INFERENCE_FAILED"),
    "no such label": (
        detection(labels=[pb.LabelMapping(model_label="thong")]),
        *("INVALID_ARGUMENT", "INVALID_FIELD"),
    ),
    "no image": (detection(image=pb.Image(encoded=b"I am no image")), "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
    "outlines by what does not load": (
        detection(polygons=pb.PolygonOptions(model="doomed")),
        *("UNAVAILABLE", "MODEL_BROKEN"),
    ),
    "outlines by what does not exist": (
        detection(polygons=pb.PolygonOptions(model="dusk")),
        *("NOT_FOUND", "MODEL_NOT_FOUND"),
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_error_of_a_call_has_its_reason_and_so_has_that_of_a_frame(puppet_stub, case):
    request, code, reason = CALLS[case]
    failure = of_call(lambda: puppet_stub.Detect(request))
    assert (failure.code, failure.info.reason) == (code, reason)
    (frame,) = puppet_stub.DetectStream(iter([pb.DetectStreamRequest(request=request)]))
    failure = read(frame.error)
    assert (failure.code, failure.info.reason) == (code, reason)


def test_what_is_not_found_is_named(puppet_stub):
    for request, kind, name in (
        (detection(model="no such"), "model", "no such"),
        (detection(version=9), "version", "finder/9"),
        (detection(image=pb.Image(digest=b"\x0f" * 32)), "image", "0f" * 32),
    ):
        said = of_call(lambda request=request: puppet_stub.Detect(request)).details["ResourceInfo"]
        assert (said.resource_type, said.resource_name) == (kind, name)


@pytest.fixture(scope="module")
def channel(puppets: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(puppets.target) as opened:
        yield opened


@pytest.mark.parametrize("method", ["GetServerInfo", "ListModels", "Segment", "Detect", "Interact", "DetectStream"])
def test_bytes_that_are_no_message_have_a_reason_in_every_method(channel, method):
    call = channel.stream_stream(f"/{SERVICE}/{method}")
    failure = of_call(lambda: list(call(iter([GARBAGE]))))
    assert (failure.code, failure.info.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_bytes_that_are_no_message_have_a_reason_in_the_health_check_too(channel, method):
    failure = of_call(lambda: list(channel.unary_stream(f"/{HEALTH}/{method}")(GARBAGE)))
    assert (failure.code, failure.info.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


@pytest.mark.parametrize("name", ["no such service", "x" * 100_000, "\N{SNOWMAN}" * 10_000])
def test_a_service_that_the_health_check_does_not_know_is_named(channel, name):
    check = health_pb2_grpc.HealthStub(channel).Check
    failure = of_call(lambda: check(health_pb2.HealthCheckRequest(service=name)))
    assert (failure.code, failure.info.reason) == ("NOT_FOUND", "SERVICE_NOT_FOUND")
    named = failure.details["ResourceInfo"]
    assert named.resource_type == "service"
    assert name.startswith(named.resource_name.removesuffix("..."))


@pytest.mark.parametrize("method", [f"{SERVICE}/Segmentt", "polywand.v2.AnnotationService/Segment", "no_such"])
@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
def test_a_method_that_the_server_does_not_have_has_a_reason(puppets, channel, method, kind):
    call = getattr(channel, kind)(f"/{method}")
    failure = of_call((lambda: call(b"")) if kind == "unary_unary" else (lambda: list(call(iter([b""])))))
    assert (failure.code, failure.info.reason) == ("UNIMPLEMENTED", "METHOD_NOT_FOUND")
    assert method not in puppets.get("/metrics")[1]


def test_a_prompt_before_an_image_has_its_reason(puppet_stub):
    with InteractStream(puppet_stub) as stream:
        failure = read(stream.ask(prompt("disk", CLICK)).error)
    assert (failure.code, failure.info.reason) == ("FAILED_PRECONDITION", "NO_IMAGE")


def test_an_outline_of_too_many_parts_has_its_reason(puppet_stub):
    seed = pb.SeedMask(rle=pb.RleMask(counts=encode_rle(DOTS), width=300, height=300))
    image = raw(300, 300, bytes(3 * 300 * 300))
    request = pb.SegmentRequest(image=image, prompts=[pb.Prompt(model="disk", seed=seed)])
    failure = read(puppet_stub.Segment(request).results[0].error)
    assert (failure.code, failure.info.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")


def test_a_model_whose_process_died_is_not_ready(puppet_stub):
    with InteractStream(puppet_stub) as stream:
        stream.ask(SMALL)
        failure = read(stream.ask(prompt("mortal", CLICK)).error)
    assert (failure.code, failure.info.reason) == ("UNAVAILABLE", "MODEL_NOT_READY")


def test_a_server_that_is_full_says_of_what(puppet_stub):
    side = int((0.6 * IMAGES_MEBIBYTES * 2**20 / 4) ** 0.5)  # more than half of the room for images each
    black, white = (raw(side, side, bytes([value]) * (3 * side * side)) for value in (0, 255))
    with InteractStream(puppet_stub) as holder, InteractStream(puppet_stub) as stream:
        assert holder.ask(black).image.width == side
        failure = read(stream.ask(white).error)
    assert (failure.code, failure.info.reason) == ("RESOURCE_EXHAUSTED", "SERVER_FULL")
    assert failure.details["QuotaFailure"].violations[0].subject == "images"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service with the least of limits, and its repository."""
    repository = tmp_path_factory.mktemp("strict") / "models"
    for name in ("disk", "held"):
        add_interactor(repository, name, DISK)
    options = (
        "--max-objects=1",
        "--prompt-timeout-seconds=0.5",
        "--max-image-mebibytes=1",
        "--images-mebibytes=8",
    )
    with running_service(repository.parent / "log", f"--model-repository={repository}", *options) as service:
        service.wait_ready("disk", "held")
        yield service, repository


def test_limits_that_are_settings_have_their_reasons(strict):
    service, repository = strict
    with (
        grpc.insecure_channel(service.target) as channel,
        InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream,
    ):
        failure = read(stream.ask(pb.Image(encoded=bytes(2**20 + 1))).error)
        assert (failure.info.reason, failure.info.metadata["limit"]) == ("IMAGE_TOO_LARGE", "image_bytes")
        stream.ask(SMALL)
        with Gate(repository, "held"):
            failure = read(stream.ask(prompt("held", CLICK)).error)
        assert (failure.code, failure.info.reason) == ("DEADLINE_EXCEEDED", "PROMPT_TIMEOUT")
        assert failure.info.metadata["limit"] == "prompt_ms"
        with Gate(repository, "held"):
            request = pb.SegmentRequest(image=SMALL, prompts=[prompt("held", CLICK)])
            (result,) = annotation_pb2_grpc.AnnotationServiceStub(channel).Segment(request).results
        assert read(result.error).info.reason == "PROMPT_TIMEOUT"
        failure = read(stream.ask(prompt("disk", CLICK, object_id="another")).error)
        assert (failure.code, failure.info.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OBJECTS")
        assert failure.info.metadata["limit"] == "stream_objects"


def test_while_the_helpers_for_large_input_are_started_again_the_reason_says_so(strict):
    service, _ = strict
    errors: list[status_pb2.Status] = []
    with (
        grpc.insecure_channel(service.target) as channel,
        InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream,
    ):

        def is_refused() -> bool:
            for child in psutil.Process(service.process.pid).children():
                if "polywand_server.workers.spawner" in child.cmdline():
                    child.kill()
            reply = stream.ask(pb.Image(encoded=saved(colours() // (2 + len(errors)), "GIF")))
            errors.append(reply.error)
            return reply.HasField("error")

        wait_for(is_refused, 30, service)
        failure = read(errors[-1])
        assert (failure.code, failure.info.reason) == ("UNAVAILABLE", "SERVER_UNAVAILABLE")
        later = pb.Image(encoded=saved(colours(), "GIF"))
        wait_for(lambda: stream.ask(later).HasField("image"), 30, service)


def test_without_triton_and_with_a_slow_one_the_reasons_say_so(tmp_path):
    add_interactor(tmp_path / "models", "held", DISK)
    options = (f"--model-repository={tmp_path / 'models'}", "--infer-timeout-seconds=1", "--inferences-at-once=1")
    with (
        running_service(tmp_path / "log", *options) as service,
        grpc.insecure_channel(service.target) as channel,
        InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream,
    ):
        service.wait_ready("held")
        stream.ask(SMALL)
        with Gate(tmp_path / "models", "held") as gate:
            # The first waits for Triton. One of the others gets its turn then, and at least one gets none in time.
            for name in ("first", "second", "third"):
                stream.send(prompt("held", CLICK, object_id=name))
                gate.wait_until_begun()
            errors = [stream.receive() for _ in range(3)]
        reasons = {reply.object_id: read(reply.error).info.reason for reply in errors}
        assert reasons["first"] == "TRITON_TIMEOUT"
        assert "SERVER_TIMEOUT" in reasons.values()
    with (
        running_service(tmp_path / "log", "--triton-url=127.0.0.1:9") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        failure = of_call(lambda: annotation_pb2_grpc.AnnotationServiceStub(channel).Detect(detection()))
    assert (failure.code, failure.info.reason) == ("UNAVAILABLE", "TRITON_UNAVAILABLE")


def test_the_longest_error_fits_into_a_clients_headers():
    long = "\N{SNOWMAN}" * 5000
    error = NotFoundError("version", long, resource=long, reason=Reason.VERSION_NOT_FOUND, metadata={"model": long})

    def size() -> float:
        begin("ipv4:127.0.0.1:1", "x" * 128, f"00-{'1' * 32}-{'1' * 16}-01")
        status, sent = to_status(error), trailers(current())
        percent_encoded, base64 = 3 * len(status.message.encode()), 4 / 3 * status.ByteSize()
        return percent_encoded + base64 + sum(len(key) + len(value) + 32 for key, value in sent) + 3 * 64

    assert 6000 < copy_context().run(size) < TRAILER_BYTES


def test_the_table_of_the_documentation_has_every_reason_and_no_other():
    assert sorted(reason for _, reason in DOCUMENTED) == sorted(reason.name for reason in Reason)

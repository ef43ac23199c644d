"""The server's choice: which tool answers a request that names none."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.interactors import DISK, KEEPER, PREV_MASK, add_interactor
from tests.puppets import add_detector, add_upper_half
from tests.running import Service, running_service, wait_for
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

PROMPTLY = ("--poll-seconds=0.2", "--settling-seconds=0.2")
IMAGE = raw_image(np.full((256, 256, 3), 127, np.uint8))
CLICK = (80, 80, POSITIVE)
BOX = (40, 40, 160, 160)
ENDS = [(40, 80, EXTREME), (160, 80, EXTREME), (80, 40, EXTREME), (80, 160, EXTREME)]
# In an order that is not that of the server's choice.
TOOLS = ("a_clicker", "keeper", "wand_box", "wand_click", "wand_extreme")


def seed() -> pb.SeedMask:
    ring = pb.Ring(coordinates=[40, 40, 120, 40, 120, 120, 40, 120])
    return pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=ring)]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("choice") / "models"
    clicks = '{"box": "none", "min_positive_points": 1}'
    add_interactor(root, "a_clicker", DISK, prompt=clicks)
    add_interactor(root, "keeper", KEEPER, inputs=PREV_MASK % (256, 256), prompt=clicks)
    add_interactor(root, "wand_click", DISK)
    add_interactor(root, "wand_extreme", DISK, prompt='{"extreme_points": 4, "min_positive_points": 0}')
    add_upper_half(root, "wand_box", prompt='{"box": "required", "min_positive_points": 0}')
    for name in ("a_finder", "nanodet"):
        add_detector(root, name)
    return root


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Service]:
    with running_service(repository.parent / "log", f"--model-repository={repository}", *PROMPTLY) as started:
        started.wait_ready(*TOOLS, "a_finder", "nanodet")
        yield started


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    with grpc.insecure_channel(service.target) as channel:
        yield annotation_pb2_grpc.AnnotationServiceStub(channel)


@pytest.fixture
def stream(stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[InteractStream]:
    with InteractStream(stub) as opened:
        opened.ask(IMAGE)
        yield opened


def violation(status: Status) -> error_details_pb2.BadRequest.FieldViolation:
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            return request.field_violations[0]
    raise AssertionError(f"no BadRequest in {status}")


def says_when_to_retry(status: Status) -> bool:
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


def with_seed(message: pb.Prompt) -> pb.Prompt:
    message.seed.CopyFrom(seed())
    return message


@pytest.mark.parametrize(
    ("message", "tool"),
    [
        (prompt("", CLICK), "wand_click"),
        (prompt("", CLICK, (90, 90, NEGATIVE)), "wand_click"),
        (prompt("", box=BOX), "wand_click"),
        (prompt("", CLICK, box=BOX), "wand_click"),
        (prompt("", *ENDS), "wand_extreme"),
        (prompt("", *ENDS, CLICK), "wand_extreme"),
        (with_seed(prompt("")), "keeper"),
        (with_seed(prompt("", CLICK)), "keeper"),
    ],
    ids=["a click", "clicks", "a box", "a box and a click", "extreme points", "and a click", "a seed", "and a click "],
)
def test_the_first_tool_for_which_the_prompt_is_enough_answers_and_the_reply_says_which(stream, message, tool):
    chosen = stream.ask(message).segmentation
    assert (chosen.model, chosen.version) == (tool, 1)
    message.model, message.object_id = tool, "named"
    assert stream.ask(message).segmentation == chosen


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (prompt(""), pb.Incomplete(message="one more positive point", missing_positive_points=1)),
        (prompt("", (9, 9, NEGATIVE)), pb.Incomplete(message="one more positive point", missing_positive_points=1)),
        (prompt("", *ENDS[:1]), pb.Incomplete(message="3 more extreme points", missing_extreme_points=3)),
    ],
    ids=["nothing", "a negative click", "one extreme point"],
)
def test_a_prompt_that_is_enough_for_no_tool_is_told_what_the_first_one_that_reads_it_needs(stream, message, missing):
    assert stream.ask(message).incomplete == missing


@pytest.mark.parametrize(
    ("message", "field", "text"),
    [
        (with_seed(prompt("", *ENDS)), "prompt.seed", "model 'wand_click' reads no seed mask"),
        (with_seed(prompt("", box=BOX)), "prompt.seed", "model 'wand_click' reads no seed mask"),
        (prompt("", *[CLICK] * 17), "prompt.points", "17 points; model 'wand_click' takes at most 14"),
    ],
    ids=["a seed and extreme points", "a seed and a box", "many points"],
)
def test_a_prompt_that_no_tool_reads_is_refused_by_its_field(stream, message, field, text):
    error = stream.ask(message).error
    assert error.code == code_pb2.INVALID_ARGUMENT
    assert violation(error).field == field
    assert violation(error).description == f"{text}, and no other tool takes this prompt"
    assert stream.ask(prompt("", CLICK)).segmentation.model == "wand_click"


def test_many_points_go_to_a_tool_that_takes_so_many(stream):
    assert stream.ask(prompt("", *[CLICK] * 15)).segmentation.model == "a_clicker"  # no two rows are for a box


def test_what_is_remembered_is_the_tools_whether_it_was_named_or_chosen(stream):
    assert stream.ask(prompt("", CLICK)).timing.inferences == 1
    assert stream.ask(prompt("wand_click", CLICK)).timing.inferences == 0
    assert stream.ask(prompt("", *ENDS)).segmentation.model == "wand_extreme"
    again = stream.ask(prompt("", CLICK))
    assert (again.segmentation.model, again.timing.inferences) == ("wand_click", 0)


def test_a_prompt_is_counted_as_its_tools(service, stream):
    sample = 'polywand_prompts_total{model="wand_extreme",outcome="segmentation"}'
    before = service.metric(sample)
    stream.ask(prompt("", *ENDS))
    wait_for(lambda: service.metric(sample) == before + 1, 60, service)


def test_prompts_of_one_call_may_get_different_tools(stub, stream):
    prompts = [prompt("", CLICK), prompt("", *ENDS), with_seed(prompt("")), prompt("a_clicker", CLICK), prompt("")]
    results = stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=prompts)).results
    found = [result.segmentation for result in results[:4]]
    assert [answer.model for answer in found] == ["wand_click", "wand_extreme", "keeper", "a_clicker"]
    assert found == [stream.ask(message).segmentation for message in prompts[:4]]
    assert results[4].incomplete.missing_positive_points == 1
    named = stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=prompts, model="keeper")).results
    assert [result.segmentation.model for result in named] == ["keeper", "", "keeper", "a_clicker", ""]
    assert violation(named[1].error).field == "prompts[1].points"  # the tool that was named reads no such points


def test_a_version_without_a_name_is_refused(stub, stream):
    error = stream.ask(prompt("", CLICK, version=1)).error
    assert error.code == code_pb2.INVALID_ARGUMENT
    assert violation(error).field == "prompt.version"
    assert "needs the name of a model" in violation(error).description
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(pb.DetectRequest(image=IMAGE, version=1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(rpc_status.from_call(caught.value)).field == "version"
    prompts = [prompt("", CLICK), prompt("", CLICK, version=1)]
    results = stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=prompts)).results
    assert results[0].segmentation.model == "wand_click"
    assert violation(results[1].error).field == "prompts[1].version"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=prompts, version=1))
    assert violation(rpc_status.from_call(caught.value)).field == "version"


def test_the_choice_changes_when_tools_come_and_go(stub, stream, repository, tmp_path):
    def chosen(*points: tuple[float, float, int], **more) -> str:
        return stream.ask(prompt("", *points, **more)).segmentation.model

    def detector() -> str:
        return stub.Detect(pb.DetectRequest(image=IMAGE)).model

    first = stream.ask(prompt("", CLICK)).segmentation
    assert (first.model, chosen(box=BOX), detector()) == ("wand_click", "wand_click", "nanodet")
    away = {name: shutil.move(repository / name, tmp_path / name) for name in ("wand_click", "nanodet")}
    wait_for(lambda: chosen(CLICK) == "a_clicker", 60)
    assert chosen(box=BOX) == "wand_box"
    wait_for(lambda: detector() == "a_finder", 60)
    for name, folder in away.items():
        shutil.move(folder, repository / name)
    wait_for(lambda: chosen(CLICK) == "wand_click", 60)
    assert stream.ask(prompt("", CLICK)).segmentation == first
    wait_for(lambda: detector() == "nanodet", 60)


def test_what_is_not_ready_is_unavailable_and_what_does_not_exist_is_not_found(tmp_path):
    repository = tmp_path / "models"
    add_interactor(repository, "doomed", "")
    (repository / "doomed" / "1" / "model.py").unlink()
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}", *PROMPTLY) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)

        def of_prompt() -> Status:
            with InteractStream(stub) as stream:
                stream.ask(IMAGE)
                return stream.ask(prompt("", CLICK)).error

        def of_frame() -> Status:
            try:
                stub.Detect(pb.DetectRequest(image=IMAGE))
            except grpc.RpcError as error:
                return rpc_status.from_call(error)
            return Status()

        # Of a model that was never loaded, the kind is not known.
        wait_for(lambda: "'doomed' is not" in of_prompt().message, 60, service)
        for status, kind in ((of_prompt(), "interactor"), (of_frame(), "detector")):
            assert status.code == code_pb2.UNAVAILABLE
            assert says_when_to_retry(status)
            assert status.message.startswith(f"no {kind} is ready; 'doomed' is not: ")

        shutil.rmtree(repository / "doomed")
        add_detector(repository, "finder")
        wait_for(lambda: of_prompt().code == code_pb2.NOT_FOUND and not of_frame().code, 60, service)
        missing = violation(of_prompt())
        assert (missing.field, missing.description) == ("prompt.model", "there is no interactor here")

        shutil.rmtree(repository / "finder")
        add_interactor(repository, "disk", DISK)
        wait_for(lambda: of_frame().code == code_pb2.NOT_FOUND and not of_prompt().code, 60, service)
        missing = violation(of_frame())
        assert (missing.field, missing.description) == ("model", "there is no detector here")

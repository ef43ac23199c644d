"""Forget: objects are freed, one or all, with their prompts, their masks and their place on the image."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from polywand_server.config import Limits
from tests.interactors import Gate
from tests.running import Service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

MODEL = "counter"
MEMORY = "polywand_mask_memory_bytes"
SKIPPED = f'polywand_prompts_skipped_total{{model="{MODEL}"}}'
ANSWERED = f'polywand_prompts_total{{model="{MODEL}",outcome="segmentation"}}'
MOST = Limits().objects
ALL = pb.Forget(all=True)
IMAGE = raw_image(np.zeros((256, 256, 3), np.uint8))


@pytest.fixture
def stream(idle_stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[InteractStream]:
    with InteractStream(idle_stub) as opened:
        opened.ask(IMAGE)
        yield opened


def click(object_id: str, x: float = 128, model: str = MODEL) -> pb.Prompt:
    return prompt(model, (x, 128, POSITIVE), object_id=object_id)


def one(object_id: str) -> pb.Forget:
    return pb.Forget(object_id=object_id)


def forgotten(reply: pb.InteractResponse) -> tuple[str, int, int]:
    """The object's id, how many objects there were, and how many prompts get no reply."""
    assert reply.HasField("forgotten"), reply
    return reply.object_id, reply.forgotten.objects, reply.skipped


def test_a_forgotten_object_starts_anew_and_the_others_stay(puppets: Service, stream: InteractStream) -> None:
    for name in "ab":
        assert stream.ask(click(name)).timing.inferences == 1
    both = puppets.metric(MEMORY)
    assert forgotten(stream.ask(one("a"))) == ("a", 1, 0)
    assert 0 < puppets.metric(MEMORY) < both
    assert stream.ask(click("b")).timing.inferences == 0
    assert stream.ask(click("a")).timing.inferences == 1
    assert forgotten(stream.ask(ALL)) == ("", 2, 0)
    assert puppets.metric(MEMORY) == 0
    assert stream.ask(click("b")).timing.inferences == 1


def test_to_forget_what_is_not_there_is_no_error(stream: InteractStream) -> None:
    assert forgotten(stream.ask(one("never seen"))) == ("never seen", 0, 0)
    assert forgotten(stream.ask(one(""))) == ("", 0, 0)
    assert forgotten(stream.ask(ALL)) == ("", 0, 0)
    stream.ask(click(""))
    assert forgotten(stream.ask(one(""))) == ("", 1, 0)  # the empty id is an id


def test_prompts_of_a_forgotten_object_get_no_reply_and_count_as_skipped_once(
    puppets: Service, puppet_models: Path, stream: InteractStream
) -> None:
    skipped, answered = puppets.metric(SKIPPED), puppets.metric(ANSWERED)
    with Gate(puppet_models, MODEL) as gate:
        stream.send(click("a", 100))  # runs
        gate.wait_until_begun()
        for x in (110, 120, 130):  # two are replaced, and one waits
            stream.send(click("a", x))
        reply = stream.ask(one("a"))
        gate.wait_until_cancelled()
    assert forgotten(reply) == ("a", 1, 4)
    assert stream.ask(click("a", 140)).skipped == 0  # those were counted already
    wait_for(lambda: puppets.metric(ANSWERED) == answered + 1, 60, puppets)
    assert puppets.metric(SKIPPED) == skipped + 4


def test_a_prompt_that_is_sent_right_after_forget_is_answered(
    puppets: Service, puppet_models: Path, stream: InteractStream
) -> None:
    with Gate(puppet_models, MODEL) as gate:
        stream.send(click("a", 100))
        gate.wait_until_begun()
        for target in (one("a"), ALL):
            stream.send(target)
            again = stream.send(click("a", 110))
            assert forgotten(stream.receive())[1:] == (1, 1)
        gate.let_through(9)
        reply = stream.receive()
    assert (reply.sequence, reply.skipped, reply.timing.inferences) == (again, 0, 1)
    assert reply.segmentation.shape.polygons


def test_all_objects_in_work_are_forgotten_together(puppet_models: Path, stream: InteractStream) -> None:
    names = "abcdef"  # more than are in work at the same time
    with Gate(puppet_models, MODEL) as gate:
        for name in names:
            stream.send(click(name))
        gate.wait_until_begun()
        assert forgotten(stream.ask(ALL)) == ("", len(names), len(names))
    assert stream.ask(click("a")).timing.inferences == 1


def test_one_image_takes_any_number_of_objects_one_after_another(stream: InteractStream) -> None:
    for number in range(MOST):
        stream.send(click(str(number), model="no such tool"))
        assert stream.receive().HasField("error")
    refused = stream.ask(click("too many"))
    assert refused.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert field_of(refused) == "prompt.object_id"
    assert "forget" in refused.error.message
    stream.ask(one("7"))
    assert stream.ask(click("fits now")).HasField("segmentation")
    assert stream.ask(click("too many")).HasField("error")
    assert forgotten(stream.ask(ALL)) == ("", MOST, 0)
    assert stream.ask(click("fits again")).HasField("segmentation")


def field_of(reply: pb.InteractResponse) -> str:
    """Which field of the request an error names."""
    request = error_details_pb2.BadRequest()
    found = [detail for detail in reply.error.details if detail.Unpack(request)]
    assert len(found) == 1, reply
    return request.field_violations[0].field


@pytest.mark.parametrize(
    ("bad", "field", "object_id"),
    [
        (pb.Forget(), "forget", ""),
        (pb.Forget(all=False), "forget.all", ""),
        (one("x" * 129), "forget.object_id", ""),
        (one("ä" * 65), "forget.object_id", ""),  # characters of two bytes
    ],
    ids=["neither", "all is false", "129 bytes", "130 bytes"],
)
def test_a_bad_forget_is_refused_and_frees_nothing(
    stream: InteractStream, bad: pb.Forget, field: str, object_id: str
) -> None:
    stream.ask(click("a"))
    reply = stream.ask(bad)
    assert reply.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (field_of(reply), reply.object_id) == (field, object_id)
    assert stream.ask(click("a")).timing.inferences == 0
    assert forgotten(stream.ask(one("x" * 128))) == ("x" * 128, 0, 0)


def test_forget_needs_an_image_and_a_sequence_that_does_not_decrease(
    idle_stub: annotation_pb2_grpc.AnnotationServiceStub,
) -> None:
    with InteractStream(idle_stub) as stream:
        early = stream.ask(one("a"))
        assert early.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert (field_of(early), early.object_id) == ("forget", "a")
        stream.ask(IMAGE)
        stream.ask(click("a"))
        stream.send(ALL, sequence=1)
        late = stream.receive()
        assert late.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert field_of(late) == "sequence"
        stream.send(ALL, sequence=9)
        assert forgotten(stream.receive()) == ("", 1, 0)

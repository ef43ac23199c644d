"""Where an interactor looks for an object, and when it looks again."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.interactors import DISK, Gate, add_interactor
from tests.running import running_service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image, stream_to

SIDE = 1024
CENTRE = (512, 512, POSITIVE)
BESIDE = (520, 520, POSITIVE)
DRAGGED = [(960 - step, 200, POSITIVE) for step in range(60)]
NEAR, WHOLE = 80, 160  # radius, in image pixels, of what it finds in a crop of half the image, and in all of it


def photo(*, bright_near_the_centre: bool) -> pb.Image:
    pixels = np.full((SIDE, SIDE, 3), 30 if bright_near_the_centre else 250, np.uint8)
    pixels[256:768, 256:768] = 250 if bright_near_the_centre else 30
    return raw_image(pixels)


@pytest.fixture
def stream(puppet_stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[InteractStream]:
    with InteractStream(puppet_stub) as opened:
        opened.ask(photo(bright_near_the_centre=True))
        yield opened


def radius(reply: pb.InteractResponse) -> float:
    assert reply.HasField("segmentation"), reply
    return float(np.sqrt(reply.segmentation.shape.area / np.pi))


@pytest.mark.parametrize(("bright_near", "found"), [(True, NEAR), (False, WHOLE)])
def test_a_first_click_is_looked_for_near_it_and_in_the_whole_image_and_the_surest_answer_stands(
    stream, bright_near, found
):
    stream.ask(photo(bright_near_the_centre=bright_near))
    reply = stream.ask(prompt("dazzled", CENTRE))
    assert reply.timing.inferences == 2
    assert radius(reply) == pytest.approx(found, rel=0.03)


def test_a_mask_that_is_not_where_it_was_looked_for_is_looked_at_again(stream):
    first = stream.ask(prompt("dazzled", CENTRE))
    beside = stream.ask(prompt("dazzled", CENTRE, BESIDE))
    assert beside.timing.inferences == 1
    far = stream.ask(prompt("dazzled", CENTRE, BESIDE, (960, 200, POSITIVE)))
    assert far.timing.inferences == 2
    assert stream.ask(prompt("dazzled", CENTRE)).segmentation == first.segmentation


def test_a_click_right_after_another_builds_on_all_passes_of_that(stream, puppet_models):
    """It is no drag: the first answer is what the second one starts from, so it gets all of its passes."""
    points = [(CENTRE,), (CENTRE, BESIDE)]
    one_by_one = [stream.ask(prompt("dazzled", *clicks)).segmentation for clicks in points]
    with Gate(puppet_models, "dazzled") as gate:
        sent = [stream.send(prompt("dazzled", points[0][0], object_id="in a hurry"))]
        gate.wait_until_begun()
        sent.append(stream.send(prompt("dazzled", *points[1], object_id="in a hurry")))
        stream.wait_until_read()
    replies = [stream.receive(), stream.receive()]
    assert [reply.sequence for reply in replies] == sent
    assert [reply.segmentation for reply in replies] == one_by_one
    assert [reply.timing.inferences for reply in replies] == [2, 1]


def test_the_same_prompt_again_does_not_make_the_first_one_a_drag(stream, puppet_models):
    """Only a click that was left behind gets one pass: here the same click asks for another form of its answer."""
    with Gate(puppet_models, "dazzled") as gate:
        first = stream.send(prompt("dazzled", CENTRE))
        gate.wait_until_begun()
        second = stream.send(prompt("dazzled", CENTRE, mask=True))
        stream.wait_until_read()
    replies = [stream.receive(), stream.receive()]
    assert [(reply.sequence, reply.timing.inferences) for reply in replies] == [(first, 2), (second, 0)]


def drag(stream: InteractStream, gate: Gate, points: list[tuple], *before: tuple) -> list[pb.InteractResponse]:
    """Drag a click along points, of which the first, one in the middle and the last are answered; return the answers.

    before: clicks that stay. Behind the gate, an inference is under way until the next points are read.
    """
    middle = len(points) // 2

    def send(some: list[tuple]) -> None:
        for point in some:
            stream.send(prompt("dazzled", *before, point))

    send(points[:1])
    gate.wait_until_begun(1)
    send(points[1:middle])
    stream.wait_until_read()
    gate.let_through()
    replies = [stream.receive()]
    gate.wait_until_begun(2)
    send(points[middle:])
    stream.wait_until_read()
    gate.let_through()
    replies.append(stream.receive())
    gate.let_through(2)
    replies.append(stream.receive())
    assert [reply.skipped for reply in replies] == [0, middle - 2, len(points) - middle - 1]
    return replies


def test_a_drag_is_answered_by_its_newest_prompts_that_tell_how_many_they_skipped(stream, puppet_models):
    with Gate(puppet_models, "dazzled") as gate:
        replies = drag(stream, gate, DRAGGED)
    assert sum(1 + reply.skipped for reply in replies) == len(DRAGGED)


@pytest.mark.parametrize("before", [(), (CENTRE,)], ids=["a first click", "a further click"])
def test_a_dragged_click_is_followed_in_one_pass_and_gets_all_of_them_when_it_rests(stream, puppet_models, before):
    if before:
        stream.ask(prompt("dazzled", *before))
    with Gate(puppet_models, "dazzled") as gate:
        replies = drag(stream, gate, DRAGGED, *before)
    assert [reply.timing.inferences for reply in replies] == [1, 1, 2]
    assert [reply.segmentation.provisional for reply in replies] == [True, True, False]
    rested = stream.ask(prompt("dazzled", *before, DRAGGED[-1]))
    assert (rested.segmentation, rested.timing.inferences) == (replies[-1].segmentation, 0)


@pytest.mark.parametrize("before", [(), (CENTRE,)], ids=["a first click", "a further click"])
def test_undo_to_a_click_of_a_drag_answers_as_if_there_had_been_no_drag(stream, puppet_models, before):
    """What a drag showed on its way is kept for the drag alone."""
    pixels = np.full((SIDE, SIDE, 3), 250, np.uint8)
    pixels[:, SIDE // 2 :] = 30  # around the drag, so that a first click's second pass has the surer answer
    stream.ask(raw_image(pixels))
    if before:
        stream.ask(prompt("dazzled", *before))
    with Gate(puppet_models, "dazzled") as gate:
        provisional = drag(stream, gate, DRAGGED, *before)[0]
    clicks = (*before, DRAGGED[0])
    undone = stream.ask(prompt("dazzled", *clicks))
    assert not undone.segmentation.provisional
    assert undone.segmentation.shape != provisional.segmentation.shape
    assert undone.segmentation == stream.ask(prompt("dazzled", *clicks, object_id="another")).segmentation
    assert stream.ask(prompt("dazzled", *clicks)).timing.inferences == 0


def test_no_click_goes_on_from_what_a_drag_showed_on_its_way(stream, puppet_models):
    stream.ask(prompt("dazzled", CENTRE))
    with Gate(puppet_models, "dazzled") as gate:
        drag(stream, gate, DRAGGED, CENTRE)
    more = (CENTRE, DRAGGED[0], (955, 210, POSITIVE))
    after_the_drag = stream.ask(prompt("dazzled", *more))
    assert not after_the_drag.segmentation.provisional
    assert after_the_drag.segmentation == stream.ask(prompt("dazzled", *more, object_id="another")).segmentation


def test_a_superseded_prompt_stops_between_its_clicks_and_is_answered_to_all_of_them(stream, puppet_models):
    """The pass that is under way is waited for, and one more shows where the last click is."""
    points = [(100 + 40 * number, 500, POSITIVE) for number in range(6)]
    with Gate(puppet_models, "disk") as gate:
        first = stream.send(prompt("disk", *points))
        gate.wait_until_begun()
        second = stream.send(prompt("disk", (700, 700, POSITIVE)))
        stream.wait_until_read()
    provisional, last = stream.receive(), stream.receive()
    assert (provisional.sequence, provisional.timing.inferences) == (first, 2)
    assert (last.sequence, last.timing.inferences) == (second, 1)
    assert (provisional.segmentation.provisional, last.segmentation.provisional) == (True, False)
    again = stream.ask(prompt("disk", *points))
    assert again.timing.inferences == len(points) - 1  # the first click was worked through, and is remembered
    assert not again.segmentation.provisional


def test_a_click_that_was_cut_short_makes_the_prompt_that_goes_on_from_it_provisional(stream, puppet_models):
    """The first of two clicks has two passes, of which one is left out; the second has one, and nothing is left out."""
    points = (CENTRE, (530, 530, POSITIVE))
    with Gate(puppet_models, "dazzled") as gate:
        first = stream.send(prompt("dazzled_twice", *points))
        gate.wait_until_begun()
        stream.send(prompt("dazzled_twice", (700, 700, POSITIVE)))
        stream.wait_until_read()
    cut, _ = stream.receive(), stream.receive()
    assert (cut.sequence, cut.timing.inferences, cut.segmentation.provisional) == (first, 2, True)
    again = stream.ask(prompt("dazzled_twice", *points))
    assert (again.timing.inferences, again.segmentation.provisional) == (3, False)


def test_a_prompt_has_a_deadline_over_all_its_passes_and_then_its_work_stops(tmp_path: Path):
    models = tmp_path / "models"
    add_interactor(models, "disk", DISK)
    with running_service(tmp_path / "log", f"--model-repository={models}", "--prompt-timeout-seconds=1") as service:
        service.wait_ready("disk")
        with stream_to(service.target) as stream:
            stream.ask(photo(bright_near_the_centre=True))
            with Gate(models, "disk") as gate:
                reply = stream.ask(prompt("disk", CENTRE))
                assert reply.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0], reply
                assert "longer than 1 s" in reply.error.message
                gate.wait_until_cancelled()
            assert stream.ask(prompt("disk", CENTRE)).HasField("segmentation")

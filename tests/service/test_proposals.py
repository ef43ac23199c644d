"""A first click is looked for where a detector sees something; whatever becomes of the detector, it is answered."""

import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.interactors import Gate
from tests.puppets import ABSENT, LATE, add_detector, with_proposals
from tests.running import DETECTION, Service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image, stream_to

SIDE = 1024
CENTRE, CORNER, LONELY = (512, 512, POSITIVE), (100, 100, POSITIVE), (950, 100, POSITIVE)
HELD_SECONDS = 1.0


@pytest.fixture
def stream(puppets: Service) -> Iterator[InteractStream]:
    with stream_to(puppets.target) as opened:
        opened.ask(bright_within(384, 640))
        yield opened


def bright_within(start: int, end: int) -> pb.Image:
    pixels = np.full((SIDE, SIDE, 3), 30, np.uint8)
    pixels[start:end, start:end] = 250
    return raw_image(pixels)


def seen(reply: pb.InteractResponse) -> float:
    """The side, in image pixels, of the crop that the answer was found in."""
    assert reply.HasField("segmentation"), reply
    return float(np.sqrt(reply.segmentation.shape.area / np.pi)) / 40 * 256


def test_the_best_boxes_that_hold_the_click_are_looked_at_and_the_surest_answer_stands(stream):
    reply = stream.ask(prompt(with_proposals("finder"), CENTRE))
    assert reply.timing.inferences == 1 + DETECTION + 2  # the whole image, and the two best boxes
    assert seen(reply) == pytest.approx(256, rel=0.05)
    stream.ask(bright_within(448, 576))  # as the third box is, which is one too many
    assert seen(stream.ask(prompt(with_proposals("finder"), CENTRE))) == pytest.approx(256, rel=0.05)
    corner = stream.ask(prompt(with_proposals("finder"), CORNER))
    assert corner.timing.inferences == 1 + 1


def test_the_box_that_an_answer_agrees_with_is_asked_for_as_well(stream):
    """The disk that is found is 80 pixels wide, and among the boxes around it the third agrees with that the most."""
    agreed = stream.ask(prompt("agrees", CENTRE))
    assert agreed.timing.inferences == 1 + DETECTION + 2 + 1
    assert seen(agreed) == pytest.approx(128, rel=0.05)
    drawn = stream.ask(prompt("agrees", box=(448, 448, 576, 576), object_id="drawn"))
    assert drawn.timing.inferences == 1
    assert agreed.segmentation == drawn.segmentation  # the click is in its middle
    off_centre = (620, 512, POSITIVE)  # the disk is a part of two boxes, and like neither
    assert stream.ask(prompt("agrees", off_centre, object_id="off")).timing.inferences == 1 + 2
    assert stream.ask(prompt("agrees", CENTRE, (520, 520, POSITIVE))).timing.inferences == 1


def test_a_box_that_holds_only_some_of_the_clicks_or_is_not_sure_enough_tells_nothing(stream):
    assert stream.ask(prompt(with_proposals("finder"), LONELY)).timing.inferences == 1 + DETECTION
    both = stream.ask(prompt("needs_two", CENTRE, CORNER, object_id="both"))
    assert both.timing.inferences == 1


def test_the_detector_is_asked_once_for_each_image(stream):
    counts = []
    for image in (bright_within(384, 640), bright_within(256, 768)):
        stream.ask(image)
        counts += [
            stream.ask(prompt(with_proposals("finder"), CENTRE, object_id=name)).timing.inferences for name in "ab"
        ]
    assert counts == [4, 3, 4, 3]


def test_whoever_says_more_than_a_click_needs_no_proposals(stream):
    assert stream.ask(prompt(with_proposals("finder"), box=(300, 300, 700, 700))).timing.inferences == 1
    assert stream.ask(prompt(with_proposals("finder"), CENTRE, box=(300, 300, 700, 700))).timing.inferences == 1
    stream.ask(prompt(with_proposals("finder"), CENTRE, object_id="another"))
    assert (
        stream.ask(
            prompt(with_proposals("finder"), CENTRE, (520, 520, POSITIVE), object_id="another")
        ).timing.inferences
        == 1
    )


def test_a_drag_does_not_wait_for_the_detector(stream, puppet_models):
    tool = with_proposals("finder")
    with Gate(puppet_models, "dazzled") as gate:
        first = stream.send(prompt(tool, (500, 512, POSITIVE)))
        gate.wait_until_begun()
        last = [stream.send(prompt(tool, (500 + step, 512, POSITIVE))) for step in range(1, 30)][-1]
        stream.wait_until_read()
    replies = [stream.receive(), stream.receive()]
    assert [reply.sequence for reply in replies] == [first, last]
    assert [reply.timing.inferences for reply in replies] == [1, 1 + DETECTION + 2]
    assert [reply.segmentation.provisional for reply in replies] == [True, False]
    rested = stream.ask(prompt(tool, (529, 512, POSITIVE)))
    assert (rested.segmentation, rested.timing.inferences) == (replies[-1].segmentation, 0)


@pytest.mark.parametrize("detector", ["stalls", "fails", ABSENT])
def test_a_detector_that_does_not_answer_costs_no_click_its_answer(puppets, puppet_models, stream, detector):
    """What it costs is a moment, once an image; and the log tells, and so do the answers, unless it was never there."""

    def told() -> int:
        return puppets.log.read_text().count(f"without proposals of '{detector}'")

    before = told()
    with Gate(puppet_models, "stalls"):
        for name in "ab":
            reply = stream.ask(prompt(with_proposals(detector), CENTRE, object_id=name))
            assert reply.timing.inferences == 1
            assert seen(reply) == pytest.approx(SIDE, rel=0.05)
            more = stream.ask(prompt(with_proposals(detector), CENTRE, (520, 520, POSITIVE), object_id=name))
            assert more.timing.inferences == 1  # what the first one led to is remembered all the same
            assert reply.segmentation.provisional == more.segmentation.provisional == (detector != ABSENT)
    assert told() - before == (0 if detector == ABSENT else 1)


def test_a_detector_that_comes_later_is_heeded_by_all_objects_once_it_has_told_what_it_sees(
    puppets, puppet_models, stream
):
    more = (CENTRE, (520, 520, POSITIVE))
    tool = with_proposals(LATE)
    first = stream.ask(prompt(tool, CENTRE, object_id="early"))
    assert not first.segmentation.provisional  # there is no such detector, and perhaps there never will be
    try:
        add_detector(puppet_models, LATE)
        puppets.wait_ready(LATE)
        again = stream.ask(prompt(tool, CENTRE, object_id="early"))
        assert again.segmentation.provisional
        assert again.timing.inferences == 0
        later = stream.ask(prompt(tool, *more, object_id="late"))
        assert not later.segmentation.provisional
        assert stream.ask(prompt(tool, *more, object_id="early")).segmentation == later.segmentation
        assert not stream.ask(prompt(tool, CENTRE, object_id="early")).segmentation.provisional
    finally:
        shutil.rmtree(puppet_models / LATE)


def test_a_click_that_waits_for_the_detection_of_another_object_says_so_and_gives_way_to_a_newer_one(
    puppets, puppet_models, stream
):
    def passes() -> float:
        return puppets.metric('polywand_inferences_total{model="dazzled",outcome="ok",version="1"}')

    tool, before = with_proposals("stalls"), passes()
    with Gate(puppet_models, "stalls") as gate:
        first = stream.send(prompt(tool, CENTRE, object_id="a"))
        gate.wait_until_begun()
        second = stream.send(prompt(tool, CENTRE, object_id="b"))
        wait_for(lambda: passes() == before + 2, 30)
        third = stream.send(prompt(tool, CORNER, object_id="b"))
        provisional = stream.receive()
        assert provisional.sequence == second
        assert provisional.segmentation.provisional
        wait_for(lambda: passes() == before + 3, 30)
        time.sleep(HELD_SECONDS)  # this is what the third one waits, at least
    replies = {reply.sequence: reply.timing for reply in (stream.receive(), stream.receive())}
    assert replies.keys() == {first, third}
    waited = replies[third]
    in_stages = waited.wait_us + waited.prepare_us + waited.triton_us + waited.geometry_us
    assert waited.wait_us > HELD_SECONDS / 2 * 1e6
    assert in_stages <= waited.total_us

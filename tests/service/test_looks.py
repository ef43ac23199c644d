"""Where an interactor looks for an object, and when it looks again."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.interactors import DAZZLED, LOOKS, PREV_MASK, SLOW, add_interactor
from tests.running import running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

SIDE = 1024
CENTRE = (512, 512, POSITIVE)
DRAGGED = [(960 - step, 200, POSITIVE) for step in range(60)]
NEAR, WHOLE = 80, 160  # radius, in image pixels, of what it finds in a crop of half the image, and in all of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("looks")


@pytest.fixture(scope="module")
def stub(folder: Path) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    """A service whose tool finds a disk around the last point, of a share of its crop; the brighter that, the surer."""
    add_interactor(folder / "models", "dazzled", DAZZLED, crop=LOOKS)
    for name in ("slow", "slower"):
        add_interactor(folder / "models", name, SLOW, inputs=PREV_MASK % (256, 256))
    add_interactor(folder / "models", "twice", SLOW, crop='{"policy": "zoom_in", "first_looks": [0.5, 1.0]}')
    options = (f"--model-repository={folder / 'models'}", "--prompt-timeout-seconds=3")
    with running_service(folder / "log", *options) as started:
        started.wait_ready("dazzled", "slow", "slower", "twice")
        with grpc.insecure_channel(started.target) as channel:
            yield annotation_pb2_grpc.AnnotationServiceStub(channel)


def photo(*, bright_near_the_centre: bool) -> pb.Image:
    pixels = np.full((SIDE, SIDE, 3), 30 if bright_near_the_centre else 250, np.uint8)
    pixels[256:768, 256:768] = 250 if bright_near_the_centre else 30
    return raw_image(pixels)


@pytest.fixture
def stream(stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[InteractStream]:
    with InteractStream(stub) as opened:
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
    beside = stream.ask(prompt("dazzled", CENTRE, (520, 520, POSITIVE)))
    assert beside.timing.inferences == 1
    far = stream.ask(prompt("dazzled", CENTRE, (520, 520, POSITIVE), (960, 200, POSITIVE)))
    assert far.timing.inferences == 2
    assert stream.ask(prompt("dazzled", CENTRE)).segmentation == first.segmentation


def test_a_click_right_after_another_builds_on_all_looks_at_that(stream):
    """Nobody drags: the first answer is what the second one starts from, so it is worth its time."""
    points = [(CENTRE,), (CENTRE, (520, 520, POSITIVE))]
    one_by_one = [stream.ask(prompt("dazzled", *clicks)).segmentation for clicks in points]
    sent = [stream.send(prompt("dazzled", *clicks, object_id="in a hurry")) for clicks in points]
    replies = {reply.sequence: reply for reply in (stream.receive(), stream.receive())}
    assert [replies[sequence].segmentation for sequence in sent] == one_by_one
    assert replies[sent[0]].timing.inferences == 2


def test_a_dragged_click_is_followed_in_one_pass_and_looked_at_again_when_the_hand_rests(stream):
    stream.ask(prompt("dazzled", CENTRE))
    sent = {stream.send(prompt("dazzled", CENTRE, point)): point for point in DRAGGED}
    replies = [stream.receive()]
    while replies[-1].sequence != max(sent):
        replies.append(stream.receive())
    assert len(replies) > 1
    assert all(reply.timing.inferences == 1 for reply in replies[:-1])
    assert replies[-1].timing.inferences == 2
    hurried = replies[0]
    point = sent[hurried.sequence]
    undone = stream.ask(prompt("dazzled", CENTRE, point))
    stream.ask(prompt("dazzled", CENTRE, object_id="another"))
    assert undone.segmentation == stream.ask(prompt("dazzled", CENTRE, point, object_id="another")).segmentation
    assert undone.segmentation != hurried.segmentation


def test_what_a_drag_showed_on_its_way_is_said_to_be_provisional_and_no_click_goes_on_from_it(stream):
    stream.ask(prompt("dazzled", CENTRE))
    sent = {stream.send(prompt("dazzled", CENTRE, point)): point for point in DRAGGED}
    replies = [stream.receive()]
    while replies[-1].sequence != max(sent):
        replies.append(stream.receive())
    assert [reply.segmentation.provisional for reply in replies] == [True] * (len(replies) - 1) + [False]
    more = (CENTRE, sent[replies[0].sequence], (955, 210, POSITIVE))
    after_the_drag = stream.ask(prompt("dazzled", *more))
    assert not after_the_drag.segmentation.provisional
    assert after_the_drag.segmentation == stream.ask(prompt("dazzled", *more, object_id="another")).segmentation


def test_a_superseded_prompt_stops_between_its_clicks_and_is_answered_to_all_of_them(stream, folder):
    """The pass that is under way is waited for, and one more shows where the last click is."""
    points = [(100 + 40 * number, 500, POSITIVE) for number in range(6)]
    first = stream.send(prompt("slow", *points))
    wait_for((folder / "models" / "slow" / "begun").exists, 30)
    second = stream.send(prompt("slow", (700, 700, POSITIVE)))
    refused = stream.send(prompt("nobody", CENTRE, object_id="behind it"))
    assert stream.receive().sequence == refused  # so the other one has been read
    (folder / "models" / "slow" / "go").touch()
    hurried, last = stream.receive(), stream.receive()
    assert (hurried.sequence, hurried.timing.inferences) == (first, 2)
    assert (last.sequence, last.timing.inferences) == (second, 1)
    assert (hurried.segmentation.provisional, last.segmentation.provisional) == (True, False)
    again = stream.ask(prompt("slow", *points))
    assert again.timing.inferences == len(points) - 1  # the first click was worked through, and is remembered
    assert not again.segmentation.provisional


def test_a_click_that_was_cut_short_makes_the_prompt_that_goes_on_from_it_provisional(stream, folder):
    """The first of two clicks has two looks, of which one is left out; the second has one, and nothing is left out."""
    model = folder / "models" / "twice"
    points = (CENTRE, (530, 530, POSITIVE))
    first = stream.send(prompt("twice", *points))
    wait_for((model / "begun").exists, 30)
    stream.send(prompt("twice", (700, 700, POSITIVE)))
    refused = stream.send(prompt("nobody", CENTRE, object_id="behind it"))
    assert stream.receive().sequence == refused
    (model / "go").touch()
    hurried, _ = stream.receive(), stream.receive()
    assert (hurried.sequence, hurried.timing.inferences, hurried.segmentation.provisional) == (first, 2, True)
    again = stream.ask(prompt("twice", *points))
    assert (again.timing.inferences, again.segmentation.provisional) == (3, False)


def test_a_prompt_has_a_deadline_over_all_its_passes_and_then_its_work_stops(stream, folder):
    model = folder / "models" / "slower"
    reply = stream.ask(prompt("slower", CENTRE))
    assert reply.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0], reply
    assert "longer than 3 s" in reply.error.message
    wait_for((model / "cancelled").exists, 30)
    (model / "go").touch()
    assert stream.ask(prompt("slower", CENTRE)).HasField("segmentation")

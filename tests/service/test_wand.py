"""What the tools of `wand` promise: each way of pointing finds the object, and clicks go on from there."""

import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.running import WAND_VERSION, WAND_VERSIONS
from tests.service.test_bad_input import violation
from tests.service.test_interact import decoded
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

WOMAN = (15, 14, 364, 508)
ENDS = [(15, 480, EXTREME), (364, 420, EXTREME), (220, 14, EXTREME), (150, 508, EXTREME)]
SUIT = (150, 400, POSITIVE)  # where a mission patch is
CHEST = (100, 350, POSITIVE)
NOT_THE_FACE = (220, 130, NEGATIVE)
INFERENCES = f'polywand_inferences_total{{model="wand",outcome="ok",version="{WAND_VERSION}"}}'
DETECTIONS = 'polywand_inferences_total{model="nanodet",outcome="ok",version="1"}'


@pytest.fixture
def stream(stub, astronaut):
    """A fresh stream on the portrait."""
    with InteractStream(stub) as opened:
        opened.ask(raw_image(astronaut))
        yield opened


def mask_of(reply: pb.InteractResponse) -> np.ndarray:
    assert reply.HasField("segmentation"), reply
    return decoded(reply.segmentation.shape.rle)


@pytest.mark.parametrize(
    ("tool", "pointing", "suit"),
    [
        ("wand_click", {"points": [CHEST]}, (300, 150)),  # the garment, perhaps without its patches
        ("wand_extreme", {"points": ENDS}, (400, 150)),
        ("wand_box", {"box": WOMAN}, (400, 150)),
        ("wand_box", {"box": WOMAN, "points": [SUIT]}, (400, 150)),
    ],
)
def test_each_tool_finds_her_and_a_click_corrects_it(stream, server, tool, pointing, suit):
    points, box = pointing.get("points", []), pointing.get("box")
    before = server.metric(INFERENCES) + server.metric(DETECTIONS)
    first = stream.ask(prompt(tool, *points, box=box, mask=True))
    assert (first.segmentation.model, first.segmentation.version) == (tool, WAND_VERSION)
    assert server.metric(INFERENCES) + server.metric(DETECTIONS) == before + first.timing.inferences
    found = mask_of(first)
    assert found[suit]
    assert not found[60, 480]
    assert found.sum() > 30_000
    corrected = mask_of(stream.ask(prompt(tool, *points, NOT_THE_FACE, box=box, mask=True)))
    assert corrected[suit]
    assert not corrected[130, 220]
    undone = stream.ask(prompt(tool, *points, box=box, mask=True))
    assert undone.timing.inferences == 0
    np.testing.assert_array_equal(mask_of(undone), found)


def test_extreme_points_and_a_box_around_the_same_object_agree(stream):
    by_points = mask_of(stream.ask(prompt("wand_extreme", *ENDS, mask=True)))
    by_box = mask_of(stream.ask(prompt("wand_box", box=WOMAN, mask=True)))
    assert (by_points & by_box).sum() / (by_points | by_box).sum() > 0.85


def test_each_tool_says_what_it_still_lacks(stream):
    def lacks(tool: str, *points, **more) -> str:
        reply = stream.ask(prompt(tool, *points, **more))
        assert reply.HasField("incomplete"), reply
        return reply.incomplete.message

    assert lacks("wand_click") == "one more positive point"
    assert lacks("wand_extreme") == "4 more extreme points"
    assert lacks("wand_extreme", *ENDS[:3]) == "one more extreme point"
    assert lacks("wand_extreme", SUIT) == "4 more extreme points"
    assert lacks("wand_box") == "a box"
    assert lacks("wand_box", SUIT) == "a box"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (prompt("wand_extreme", *ENDS, box=WOMAN), "prompt.box"),
        (prompt("wand_box", *ENDS, box=WOMAN), "prompt.points"),
        (prompt("wand_click", *ENDS), "prompt.points"),
    ],
)
def test_what_a_tool_does_not_read_is_refused(stream, message, field):
    reply = stream.ask(message)
    assert violation(reply.error).field == field
    assert f"'{message.model}' reads no" in violation(reply.error).description


def clicks(stream, tool: str, *points) -> np.ndarray:
    return mask_of(stream.ask(prompt(tool, *points, mask=True)))


def test_wand_brs_answers_as_wand_click_does_where_all_clicks_are_agreed_with(stream):
    refined, plain = (clicks(stream, tool, CHEST, SUIT) for tool in ("wand_brs", "wand_click"))
    assert (refined & plain).sum() / (refined | plain).sum() > 0.99


@pytest.mark.parametrize("version", WAND_VERSIONS)
def test_wand_brs_refines_its_answer_until_it_agrees_and_an_undo_finds_the_answer_before(stream, version):
    def refined(*points) -> np.ndarray:
        return mask_of(stream.ask(prompt("wand_brs", *points, mask=True, version=version)))

    first = refined(CHEST)
    # Of the same cloth: nothing in the photo says why it does not belong to it.
    row, column = refused_pixel = (370, 90)
    assert first[refused_pixel]
    later = refined(CHEST, (column + 0.5, row + 0.5, NEGATIVE))
    assert not later[refused_pixel]
    assert later[350, 100]
    np.testing.assert_array_equal(refined(CHEST), first)


@pytest.mark.parametrize(("version", "seed"), [*((version, 0) for version in WAND_VERSIONS), (WAND_VERSION, 1)])
def test_wand_brs_obeys_clicks_that_no_refinement_reaches(stream, seed, version):
    random = np.random.default_rng(seed)
    grid = [(column, row) for column in range(40, 500, 60) for row in range(40, 500, 60)]
    pairs = random.permutation(grid)[:12]  # of opposite clicks, closer than the features that are refined
    points = [point for x, y in pairs for point in ((x + 0.5, y + 0.5, POSITIVE), (x + 4.5, y + 1.5, NEGATIVE))]
    mask = mask_of(stream.ask(prompt("wand_brs", *points, mask=True, version=version)))
    assert [bool(mask[int(y), int(x)]) for x, y, _ in points] == [label == POSITIVE for *_, label in points]

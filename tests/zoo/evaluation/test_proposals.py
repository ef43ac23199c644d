"""Where a detector sees something, an object that starts by clicks is looked for; both ways see and do the same."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import polywand
from polywand import Box, Point
from polywand_zoo.evaluation.crops import Frame, Proposals, UnknownPolicyError, ZoomIn, read_policy
from polywand_zoo.evaluation.direct import DirectTool, OnlyServedError, check
from polywand_zoo.evaluation.layouts import read_folders
from polywand_zoo.evaluation.modelfolder import ModelError, read_folder
from polywand_zoo.evaluation.networks import Precision
from polywand_zoo.evaluation.objects import Photo, Truth, load
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.proposals import Proposer, letterbox, load_proposer
from polywand_zoo.evaluation.served import ServedTool
from polywand_zoo.evaluation.server import own_service
from polywand_zoo.evaluation.simulation import iou
from polywand_zoo.evaluation.windows import Belief, Window
from tests.running import REPOSITORY
from tests.zoo.evaluation import pictures
from tests.zoo.evaluation.models import add_model, make_proposing

WIDE = (854, 480)
OPTION = {"model": "nanodet", "score": 0.3, "at_most": 2, "agree_from": 0.3}
FRAME = Frame(1000, 800, (100, 100), 0.5)
POLICY = ZoomIn(first_looks=(0.5,), max_aspect=10, proposals=Proposals("nanodet", 0.3, 2, 0.3))
CLICK = Point(300, 400)
HELD, WIDER, WIDEST = Box(250, 300, 350, 500), Box(200, 300, 400, 500), Box(100, 300, 400, 500)
ELSEWHERE = Box(301, 300, 400, 500)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_proposing(tmp_path_factory.mktemp("repository"), OPTION)
    shutil.copytree(REPOSITORY / "nanodet", root / "nanodet")
    return root


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[polywand.Client]:
    with own_service(repository, ["wand_click"]) as target, polywand.connect(target) as client:
        yield client


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Photo]:
    """By their names; one is more than twice as wide as what the detector sees."""
    image, mask = pictures.coffee()
    wide = (
        cv2.resize(image, WIDE, interpolation=cv2.INTER_CUBIC),
        cv2.resize(mask.astype(np.uint8), WIDE, interpolation=cv2.INTER_NEAREST) > 0,
    )
    folder = pictures.save_folders(
        tmp_path_factory.mktemp("photos"), astronaut=pictures.astronaut(), coffee=(image, mask), wide=wide
    )
    subjects = read_folders(folder / "images", folder / "masks").subjects
    return {subject.image.stem: load(subject) for subject in subjects}


def proposer(repository: Path, score: float = 0.3) -> Proposer:
    found = load_proposer(
        read_folder(repository, "wand_click"), Proposals("nanodet", score), Precision.SERVED, threads=0
    )
    assert found is not None
    return found


def without_proposals(repository: Path) -> DirectTool:
    folder = read_folder(repository, "wand_click")
    crop = {option: value for option, value in folder.spec["crop"].items() if option != "proposals"}
    return DirectTool(dataclasses.replace(folder, spec=folder.spec | {"crop": crop}))


# Which windows.


def edges(window: Window) -> tuple[int, int, int, int]:
    return window.left, window.top, window.right, window.bottom


def test_the_first_proposals_that_hold_the_click_are_looked_at_as_boxes_are():
    near, first, second = POLICY.looks(FRAME, Prompt((CLICK,)), None, [ELSEWHERE, WIDER, HELD, WIDEST])
    assert [near] == POLICY.looks(FRAME, Prompt((CLICK,)), None)
    assert (edges(first), edges(second)) == ((164, 264, 436, 536), (232, 264, 368, 536))
    assert [first] == POLICY.looks(FRAME, Prompt(box=WIDER), None)


def test_a_proposal_holds_all_positive_clicks_and_may_hold_negative_ones():
    other = Point(390, 450)
    _, first = POLICY.looks(FRAME, Prompt((CLICK, other)), None, [HELD, WIDER])
    assert [first] == POLICY.looks(FRAME, Prompt(box=WIDER), None)
    negative = other._replace(label="negative")
    assert len(POLICY.looks(FRAME, Prompt((CLICK, negative)), None, [HELD, WIDER])) == 3


def test_a_click_on_the_edge_of_a_proposal_is_held():
    assert len(POLICY.looks(FRAME, Prompt((Point(250, 500),)), None, [HELD])) == 2


def test_a_window_that_is_looked_at_anyway_is_looked_at_once():
    policy = dataclasses.replace(POLICY, first_looks=(1.0,))
    everything = Box(0, 0, 1000, 800)
    assert len(policy.looks(FRAME, Prompt((CLICK,)), None, [everything, WIDER])) == 2


def test_proposals_are_for_objects_that_start_by_clicks_alone():
    boxed = Prompt((CLICK,), Box(200, 200, 500, 600))
    assert POLICY.looks(FRAME, boxed, None, [HELD]) == POLICY.looks(FRAME, boxed, None)
    known = Belief(Window(100, 100, 600, 600, (100, 100)), np.pad(np.ones((60, 60), np.float32), 20))
    again = Prompt((CLICK, Point(310, 400)))
    assert POLICY.looks(FRAME, again, known, [HELD]) == POLICY.looks(FRAME, again, known)


def test_the_proposal_that_an_answer_agrees_with_most_is_asked_for():
    inside = np.zeros((100, 100), np.float32)
    inside[10:60, 20:70] = 1
    found = Belief(Window(100, 200, 600, 700, (100, 100)), inside)  # in the image, 200 to 450 by 250 to 500
    prompt = Prompt((CLICK,))
    assert POLICY.agreeing(FRAME, prompt, found, [HELD, WIDER, WIDEST]) == WIDER
    assert POLICY.agreeing(FRAME, prompt, found, [ELSEWHERE, HELD]) == HELD
    assert POLICY.agreeing(FRAME, prompt, found, [Box(0, 0, 1000, 800)]) is None
    looking = dataclasses.replace(POLICY, proposals=Proposals("nanodet"))
    assert looking.agreeing(FRAME, prompt, found, [WIDER]) is None


def test_a_policy_that_asks_nobody_looks_at_no_proposals():
    assert len(ZoomIn(first_looks=(0.5,)).looks(FRAME, Prompt((CLICK,)), None, [HELD])) == 1


def test_the_option_is_read_and_what_is_unknown_in_it_refused():
    crop = {"policy": "zoom_in", "proposals": OPTION}
    assert read_policy(crop) == ZoomIn(proposals=Proposals("nanodet", 0.3, 2, 0.3))
    with pytest.raises(UnknownPolicyError, match=r"the option 'proposals.labels' of the crop policy 'zoom_in'"):
        read_policy(crop | {"proposals": OPTION | {"labels": ["cat"]}})


# What the detector sees.


def test_the_letterbox_has_the_photo_in_its_middle():
    assert edges(letterbox(600, 400, (416, 416))) == (0, -100, 600, 500)
    assert edges(letterbox(400, 601, (320, 640))) == (-401, 0, 801, 601)
    assert edges(letterbox(854, 480, (416, 416))) == (0, -188, 854, 668)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "wide"])
def test_the_graph_and_the_service_see_the_same(
    repository: Path, client: polywand.Client, photos: dict[str, Photo], name: str
):
    photo = photos[name]
    served = client.detect(photo.subject.image, model="nanodet", threshold=0.3)
    found = proposer(repository, 0.3).look_at(photo)
    input_pixel = max(1, max(photo.width, photo.height) / 416)
    assert len(found) == len(served) >= 1
    assert found[0].score > 0.5
    for ours, theirs in zip(found, served, strict=True):
        np.testing.assert_allclose(ours.box, theirs.box, atol=input_pixel)
        assert ours.score == pytest.approx(theirs.score, abs=0.01)


def test_a_photo_is_shown_to_the_detector_once(
    repository: Path, photos: dict[str, Photo], monkeypatch: pytest.MonkeyPatch
):
    shown: list[int] = []
    find = Proposer._find
    monkeypatch.setattr(Proposer, "_find", lambda self, photo: shown.append(photo.width) or find(self, photo))
    tool = DirectTool(read_folder(repository, "wand_click"))
    for name in ("astronaut", "coffee"):
        with tool.look_at(photos[name]) as look:
            look.ask(Prompt(box=Box(100, 50, 300, 350)), "boxed")
            look.ask(Prompt((Point(250, 250),)), "first")
            look.ask(Prompt((Point(200, 250),)), "second")
    assert shown == [512, 600]


# What comes of it.


@pytest.mark.parametrize(("name", "click"), [("astronaut", Point(190, 261)), ("coffee", Point(430, 330))])
def test_masks_that_start_where_a_detector_sees_something_are_the_same_both_ways(
    repository: Path, client: polywand.Client, photos: dict[str, Photo], name: str, click: Point
):
    photo, prompt = photos[name], Prompt((click,))
    tool = DirectTool(read_folder(repository, "wand_click"))
    with tool.look_at(photo) as ours, ServedTool(client, "wand_click").look_at(photo) as theirs:
        first = ours.ask(prompt, "first")
        assert iou(theirs.ask(prompt, "first"), Truth(first)) > 0.98
    alone = without_proposals(repository)
    assert iou(alone.mask(photo, prompt, alone.answer(photo, prompt, None)), Truth(first)) < 0.5  # they do matter here


def test_a_detector_that_is_not_there_proposes_nothing(tmp_path: Path, photos: dict[str, Photo]):
    root = make_proposing(tmp_path, OPTION | {"model": "nobody"})
    folder = read_folder(root, "wand_click")
    assert folder.detector == "nobody"
    assert load_proposer(folder, Proposals("nobody"), Precision.SERVED, threads=0) is None
    check(folder)
    photo, prompt = photos["coffee"], Prompt((Point(300, 200),))
    found, expected = (tool.answer(photo, prompt, None) for tool in (DirectTool(folder), without_proposals(root)))
    assert found.window == expected.window
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_proposals_of_what_is_no_detector_are_refused(tmp_path: Path):
    root = make_proposing(tmp_path, OPTION | {"model": "red"})
    add_model(root, "red", crop={"policy": "whole"})
    with pytest.raises(ModelError, match="'red' is no detector"):
        DirectTool(read_folder(root, "wand_click"))


def test_a_detector_without_a_graph_leaves_the_model_to_the_service(tmp_path: Path):
    root = make_proposing(tmp_path, OPTION)
    shutil.copytree(REPOSITORY / "nanodet", root / "nanodet", ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(OnlyServedError, match=r"asks the detector 'nanodet', which is no ONNX graph"):
        check(read_folder(root, "wand_click"))

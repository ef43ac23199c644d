"""An object that starts by clicks has crops around a detector's boxes; both ways find the same boxes and masks."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import polywand
from polywand import Box, Point
from polywand_server.images.picture import picture_of
from polywand_server.tools.specs import ProposalSpec
from polywand_zoo.evaluation.direct import DirectTool, OnlyServedError, check
from polywand_zoo.evaluation.layouts import read_folders
from polywand_zoo.evaluation.modelfolder import ModelError, read_folder
from polywand_zoo.evaluation.networks import Precision
from polywand_zoo.evaluation.objects import Photo, Truth, load
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.proposals import Proposer, load_proposer
from polywand_zoo.evaluation.served import ServedTool
from polywand_zoo.evaluation.server import own_service
from polywand_zoo.evaluation.simulation import iou
from tests.running import REPOSITORY
from tests.zoo.evaluation import pictures
from tests.zoo.evaluation.models import add_model, make_proposing

WIDE = (854, 480)
OPTION = {"model": "nanodet", "score": 0.3, "at_most": 2, "agree_from": 0.3}


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
    """By name; one is more than twice as wide as the detector's input."""
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
        read_folder(repository, "wand_click"), ProposalSpec(model="nanodet", score=score), Precision.SERVED, threads=0
    )
    assert found is not None
    return found


def without_proposals(repository: Path) -> DirectTool:
    folder = read_folder(repository, "wand_click")
    crop = folder.spec.crop.model_copy(update={"proposals": None})
    return DirectTool(dataclasses.replace(folder, spec=folder.spec.model_copy(update={"crop": crop})))


# What the detector finds.


@pytest.mark.parametrize("name", ["astronaut", "coffee", "wide"])
def test_the_graph_and_the_service_find_the_same_boxes(
    repository: Path, client: polywand.Client, photos: dict[str, Photo], name: str
):
    photo = photos[name]
    served = client.detect(photo.subject.image, model="nanodet", threshold=0.3)
    found = proposer(repository, 0.3).propose(picture_of(photo.pixels))
    input_pixel = max(1, max(photo.width, photo.height) / 416)
    assert len(found) == len(served) >= 1
    assert found[0].score > 0.5
    for ours, theirs in zip(found, served, strict=True):
        np.testing.assert_allclose(dataclasses.astuple(ours.box), theirs.box, atol=input_pixel)
        assert ours.score == pytest.approx(theirs.score, abs=0.01)


def test_a_photo_is_shown_to_the_detector_once(
    repository: Path, photos: dict[str, Photo], monkeypatch: pytest.MonkeyPatch
):
    shown: list[int] = []
    find = Proposer._find
    monkeypatch.setattr(Proposer, "_find", lambda self, picture: shown.append(picture.width) or find(self, picture))
    tool = DirectTool(read_folder(repository, "wand_click"))
    for name in ("astronaut", "coffee"):
        with tool.open(photos[name]) as session:
            session.answer(Prompt(box=Box(100, 50, 300, 350)), "boxed")
            session.answer(Prompt((Point(250, 250),)), "first")
            session.answer(Prompt((Point(200, 250),)), "second")
    assert shown == [512, 600]


# Masks.


@pytest.mark.parametrize(("name", "click"), [("astronaut", Point(190, 261)), ("coffee", Point(430, 330))])
def test_masks_that_start_from_proposals_are_the_same_both_ways(
    repository: Path, client: polywand.Client, photos: dict[str, Photo], name: str, click: Point
):
    photo, prompt = photos[name], Prompt((click,))
    tool = DirectTool(read_folder(repository, "wand_click"))
    with tool.open(photo) as ours, ServedTool(client, "wand_click").open(photo) as theirs:
        first = ours.answer(prompt, "first")
        assert iou(theirs.answer(prompt, "first"), Truth(first)) > 0.98
    with without_proposals(repository).open(photo) as alone:
        assert iou(alone.answer(prompt, "first"), Truth(first)) < 0.5  # the proposals matter here


def test_a_missing_detector_proposes_nothing(tmp_path: Path, photos: dict[str, Photo]):
    root = make_proposing(tmp_path, OPTION | {"model": "missing"})
    folder = read_folder(root, "wand_click")
    assert folder.detector == "missing"
    assert load_proposer(folder, ProposalSpec(model="missing"), Precision.SERVED, threads=0) is None
    check(folder)
    photo, prompt = photos["coffee"], Prompt((Point(300, 200),))
    with DirectTool(folder).open(photo) as session, without_proposals(root).open(photo) as expected:
        np.testing.assert_array_equal(session.answer(prompt, "first"), expected.answer(prompt, "first"))


def test_proposals_of_what_is_no_detector_are_refused(tmp_path: Path):
    root = make_proposing(tmp_path, OPTION | {"model": "red"})
    add_model(root, "red", crop={"policy": "whole"})
    with pytest.raises(ModelError, match="'red' is no detector"):
        DirectTool(read_folder(root, "wand_click"))


def test_a_detector_without_a_graph_leaves_the_model_to_the_service(tmp_path: Path):
    root = make_proposing(tmp_path, OPTION)
    shutil.copytree(REPOSITORY / "nanodet", root / "nanodet", ignore=shutil.ignore_patterns("*.onnx"))
    with pytest.raises(OnlyServedError, match=r"uses the detector 'nanodet', which is no ONNX graph"):
        check(read_folder(root, "wand_click"))

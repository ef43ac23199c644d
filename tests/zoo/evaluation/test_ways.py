"""Straight on the graph and through the service, the same prompts have the same answers; and the command."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import polywand
from polywand import Box, Point
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_zoo.cli import main
from polywand_zoo.evaluation.direct import DirectTool, check
from polywand_zoo.evaluation.layouts import read_folders
from polywand_zoo.evaluation.masks import to_mask
from polywand_zoo.evaluation.modelfolder import ModelError, read_folder
from polywand_zoo.evaluation.networks import Precision
from polywand_zoo.evaluation.objects import DataSet, Truth, load
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.run import Results, Row, evaluate
from polywand_zoo.evaluation.scores import agreement
from polywand_zoo.evaluation.served import ServedTool
from polywand_zoo.evaluation.server import own_service
from polywand_zoo.evaluation.simulation import iou
from polywand_zoo.evaluation.trials import Rules
from polywand_zoo.versions import roll_back
from tests.running import REPOSITORY, WAND_VERSION, WAND_VERSIONS
from tests.zoo.evaluation import pictures
from tests.zoo.evaluation.models import STATE, add_model, make_repository

CLICKS = 3
MODELS = ("wand_click", "wand_extreme", "wand_box", "grabcut", "red_whole", "red_margin", "red_roi", "red_cubic")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[str]:
    with own_service(repository, MODELS) as target:
        yield target


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things to outline: one is small, and one on an image that is more than twice as large as what networks see."""
    return pictures.save_folders(
        tmp_path_factory.mktemp("photos"),
        astronaut=pictures.enlarged(pictures.astronaut(), 2),
        coffee=pictures.coffee(),
        face=pictures.face(),
        disk=pictures.disk(),
    )


def compare(repository: Path, target: str, photos: Path, model: str) -> Results:
    with polywand.connect(target) as client:
        tool = DirectTool(read_folder(repository, model))
        row = Row(tool, ServedTool(client, model, tool.version))
        return evaluate([row], [read_folders(photos / "images", photos / "masks")], Rules(CLICKS))


# Both ways.


@pytest.mark.parametrize(
    "model", ["wand_click", "wand_extreme", "wand_box", "red_whole", "red_margin", "red_roi", "red_cubic"]
)
def test_the_graph_and_the_service_agree(repository: Path, service: str, photos: Path, model: str):
    results = compare(repository, service, photos, model)
    ((name, likenesses),) = results.likenesses.items()
    found = agreement(likenesses)
    assert len(results.outcomes[name]) == 4
    assert found.holds
    assert abs(found.first - found.second) <= found.typical + 1e-12  # equal, but for rounding, where all differ one way
    assert found.typical <= 0.005
    assert found.mutual >= 0.985
    assert np.median([likeness.mutual for likeness in likenesses]) >= 0.99
    assert found.first > 0.2  # two empty masks would agree as well


@pytest.mark.parametrize(("model", "box"), [("wand_click", False), ("wand_click", True), ("wand_box", True)])
def test_both_ways_answer_clicks_at_once_as_one_by_one(
    repository: Path, service: str, photos: Path, model: str, box: bool
):
    photo = load(read_folders(photos / "images", photos / "masks").subjects[0])
    points = (Point(400, 660), Point(440, 260), Point(860, 600, "negative"))
    drawn = Box(30, 28, 728, 1016) if box else None
    prompts = [Prompt(points[:count], drawn) for count in range(0 if box else 1, 4)]
    with polywand.connect(service) as client:
        masks = []
        for tool in (DirectTool(read_folder(repository, model)), ServedTool(client, model)):
            with tool.open(photo) as session:
                masks.append([session.answer(prompt, "one by one") for prompt in prompts][-1])
                np.testing.assert_array_equal(session.answer(prompts[-1], "at once"), masks[-1])
                np.testing.assert_array_equal(session.answer(prompts[-1], "at once"), masks[-1])
        assert iou(masks[0], Truth(masks[1])) > 0.97


def test_both_ways_drop_specks_and_fill_tiny_holes_unless_a_click_lies_there(
    repository: Path, service: str, tmp_path: Path
):
    shown, mask = np.zeros((96, 144, 3), np.uint8), pictures.ellipse((96, 144), (60, 48), (40, 40))
    shown[mask] = (255, 0, 0)
    shown[20:23, 120:123] = shown[70:80, 120:130] = (255, 0, 0)  # a speck and a part
    shown[45:52, 39:46] = shown[40:56, 70:86] = 0  # a tiny hole and a hole
    speck, part, tiny_hole, hole = (slice(20, 23), slice(120, 123)), (75, 125), (slice(47, 50), slice(41, 44)), (48, 78)
    folder = pictures.save_folders(tmp_path, red=(shown, mask))
    (subject,) = read_folders(folder / "images", folder / "masks").subjects
    photo, inside = load(subject), (Point(30.5, 48.5),)
    with polywand.connect(service) as client:
        for tool in (DirectTool(read_folder(repository, "red_whole")), ServedTool(client, "red_whole")):
            with tool.open(photo) as session:
                first = session.answer(Prompt(inside), "first")
                assert (first[part], first[hole]) == (True, False)
                assert not first[speck].any()
                assert first[tiny_hole].all()
                kept = session.answer(Prompt((*inside, Point(121.5, 21.5), Point(42.5, 48.5, "negative"))), "second")
                assert kept[speck].all()
                assert not kept[tiny_hole].any()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_the_command_writes_a_table_a_json_a_plot_and_the_worst_cases(repository: Path, service: str, tmp_path: Path):
    image, mask = pictures.disk()
    photos = pictures.save_folders(tmp_path, cat=pictures.cat(), disk=(image, mask), broken=(image, mask[1:]))
    out, data = tmp_path / "out", ("--images", photos / "images", "--masks", photos / "masks", "--clicks", 2)
    ran = run("wand_click", *data, "--way", "both", "--service", service, "--repository", repository, "--out", out)
    assert ran.exit_code == 0, ran.output
    tools = (f"wand_click {WAND_VERSION} (onnx)", f"wand_click {WAND_VERSION} (service)", "grabcut 1 (service)")
    assert all(any(f"| {tool}" in line for line in ran.output.splitlines()) for tool in tools)
    assert "they agree" in ran.output
    broken = f"{photos}/masks/broken.png: the mask is 300 x 199 pixels, and broken.png is 300 x 200"
    assert f"1 left out:\n  {broken}" in ran.output

    report = json.loads((out / "evaluation.json").read_text())
    straight, served, baseline = report["tools"]
    assert (straight["way"], served["way"], baseline["model"]) == ("onnx", "service", "grabcut")
    assert straight["agreement"]["holds"] is True
    assert [item["name"] for item in straight["objects"]] == ["cat", "disk"]
    for item in served["objects"]:
        assert len(item["clicks"]) == (1 if item["clicks"][0]["iou"] == 1 else 2)  # nothing is left to click at
    cat = straight["objects"][0]
    assert (cat["clicks"][0]["label"], cat["clicks"][0]["iou"] > 0.3) == ("positive", True)
    assert cat["starts"]["box"]["box"] == box_of(pictures.cat()[1])
    assert len(report["left_out"]) == 1
    for picture in ("iou.png", f"worst-wand_click-{WAND_VERSION}-onnx.png", "worst-grabcut-1-service.png"):
        assert cv2.imread(str(out / picture)).std() > 10


def box_of(mask: np.ndarray) -> list[float]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width, y + height]


def test_single_precision_can_be_asked_for(repository: Path):
    folder = read_folder(repository, "wand_click")
    assert folder.openvino_precision == "auto"
    assert "(OpenVINO, f32)" in DirectTool(folder, Precision.FP32).masks


def test_a_version_that_was_rolled_back_is_not_evaluated(repository: Path, tmp_path: Path):
    shutil.copytree(repository / "wand", tmp_path / "wand")
    assert read_folder(tmp_path, "wand_click").version == WAND_VERSION
    roll_back(tmp_path, "wand")
    assert read_folder(tmp_path, "wand_click").version == WAND_VERSIONS[-2]
    with pytest.raises(ModelError, match=f"has no version {WAND_VERSION}; there: 1"):
        read_folder(tmp_path, "wand_click", WAND_VERSION)


def test_an_interrupted_evaluation_reports_what_it_has(repository: Path, photos: Path):
    def interrupt() -> Truth:
        raise KeyboardInterrupt

    first, second, *others = read_folders(photos / "images", photos / "masks").subjects
    data = DataSet("photos", [first, dataclasses.replace(second, read=interrupt), *others], [])
    results = evaluate([Row(DirectTool(read_folder(repository, "red_whole")))], [data], Rules(1))
    assert (results.interrupted, results.count) == ("you would not wait", 1)


def test_a_service_that_goes_away_ends_the_evaluation_with_what_there_is(tmp_path: Path, photos: Path):
    add_model(tmp_path, "red_whole", crop={"policy": "whole", "longest_side": 144})
    data = read_folders(photos / "images", photos / "masks")
    with ExitStack() as running:
        target = running.enter_context(own_service(tmp_path, ["red_whole"]))
        with polywand.connect(target, timeout=2) as client:
            results = evaluate([Row(ServedTool(client, "red_whole"))], [data], Rules(1), running.close)
    assert results.count == 1
    assert results.interrupted.startswith("coffee.png, red_whole (service), coffee: ")


# What the command says.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wand_click"], "name some data"),
        (["wand_click", "--images", "."], "--images needs --masks or --coco"),
        (["wand_click", "--objects", __file__], "--objects needs --coco"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(arguments, says):
    ran = run(*arguments)
    assert (ran.exit_code, says in ran.output) == (2, True), ran.output


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("wand_clack", "no model 'wand_clack' in"),
        ("wand_clack", "there: grabcut, nanodet, wand_click, wand_extreme, wand_box"),
        ("wand_click:7", f"has no version 7; there: 1, {WAND_VERSION}"),
        ("wand", "say which of its tools: wand_click, wand_extreme, wand_box"),
        ("nanodet", "no interactor"),
        ("grabcut", "model 'grabcut' is no ONNX graph (it has no model.onnx): evaluate it through the service"),
    ],
)
def test_a_model_that_cannot_be_evaluated_so_is_refused(photos: Path, model: str, says: str):
    data = ("--images", photos / "images", "--masks", photos / "masks")
    ran = run(model, *data, "--way", "onnx", "--no-baseline", "--repository", REPOSITORY)
    assert (ran.exit_code, says in ran.output) == (1, True), ran.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"state": STATE},
            "hands a STATE from prompt to prompt, as f-BRS does, and only the service does that: evaluate it",
        ),
        ({"flip": True}, "has the option 'flip', which only the service has: evaluate it through the service"),
    ],
)
def test_what_only_the_service_does_is_refused_on_the_graph(tmp_path: Path, more: dict, says: str):
    add_model(tmp_path, "strange", **{"crop": {"policy": "whole"}, **more})
    with pytest.raises(ModelError) as caught:
        check(read_folder(tmp_path, "strange"))
    assert says in str(caught.value)


def test_a_spec_that_the_service_would_refuse_is_refused(tmp_path: Path):
    add_model(tmp_path, "strange", crop={"policy": "margin", "fractions": 0.1})
    with pytest.raises(ModelError, match=r"(?s)its parameter 'polywand' is wrong: .*crop\.margin\.fractions"):
        read_folder(tmp_path, "strange")


def test_a_service_that_does_not_start_says_why(tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere"), own_service(tmp_path / "nowhere", ["wand_click"]):
        pass


# Masks.


def test_the_mask_is_what_is_above_the_threshold_at_pixel_centres():
    probabilities = np.zeros((40, 40), np.float32)
    probabilities[10:20, 4:30] = 1
    mask = to_mask(ProbabilityMap(Region(-10, 0, 80, 80, (40, 40)), probabilities), 0.5, 100, 90)
    expected = np.zeros((90, 100), np.bool_)
    expected[20:40, 0:50] = True
    np.testing.assert_array_equal(mask, expected)

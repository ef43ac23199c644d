"""`polywand segment`: boxes from the command line and from files, an answer or an error for each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from polywand.cli import main
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import Script, scripted_server, status


def as_outlines(request: pb.SegmentRequest) -> list[pb.SegmentResult]:
    """Answer each prompt with its box as the outline; but a box that begins at 3 is an error."""
    return [refused(prompt) if prompt.box.x0 == 3 else outlined(prompt) for prompt in request.prompts]


def outlined(prompt: pb.Prompt) -> pb.SegmentResult:
    box = prompt.box
    ring = pb.Ring(coordinates=[box.x0, box.y0, box.x1, box.y0, box.x1, box.y1, box.x0, box.y1])
    shape = pb.Shape(polygons=[pb.Polygon(exterior=ring)], box=box, area=(box.x1 - box.x0) * (box.y1 - box.y0), iou=1)
    kind = pb.SCORE_KIND_PREDICTED_IOU
    answer = pb.Segmentation(shape=shape, model="m", version=1, threshold=0.5, score=0.25, score_kind=kind)
    return pb.SegmentResult(object_id=prompt.object_id, segmentation=answer)


def refused(prompt: pb.Prompt) -> pb.SegmentResult:
    error = status(grpc.StatusCode.INVALID_ARGUMENT, "the box is empty")
    return pb.SegmentResult(object_id=prompt.object_id, error=error)


@pytest.fixture
def script() -> Script:
    return Script(segment=as_outlines)


@pytest.fixture
def target(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", np.full((3, 4, 3), 90, np.uint8))
    with scripted_server(script) as target:
        yield target


def segment(target: str, *arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["--target", target, "segment", "photo.png", *map(str, arguments)], input=stdin)


def the_request(script: Script) -> pb.SegmentRequest:
    ((_, request),) = script.arrivals
    assert isinstance(request, pb.SegmentRequest)
    return request


def sent(script: Script) -> list[tuple[str, list[float]]]:
    """The prompts of the request: their ids and boxes."""
    return [(one.object_id, [one.box.x0, one.box.y0, one.box.x1, one.box.y1]) for one in the_request(script).prompts]


def the_line(result: Result) -> Any:
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_each_box_has_its_outline_in_order(target: str, script: Script) -> None:
    result = segment(target, "--box", "1,1,2,2", "--box", "0,0,4,3", "--json")
    assert result.exit_code == 0, result.stderr
    answer = the_line(result)
    assert (answer["image"], answer["width"], answer["height"]) == ("photo.png", 4, 3)
    assert [one["prompt"] for one in answer["objects"]] == [[1, 1, 2, 2], [0, 0, 4, 3]]
    assert [one["area"] for one in answer["objects"]] == [1, 12]
    assert answer["objects"][0]["polygons"] == [{"exterior": [[1, 1], [2, 1], [2, 2], [1, 2]], "holes": []}]


def test_the_answer_is_printed_for_people_too(target: str) -> None:
    result = segment(target, "--box", "1,1,2,2", "--box", "0,0,4,3")
    header, first, second = result.stdout.splitlines()
    assert header.startswith("photo.png: 2 of 2 objects outlined by m version 1, ")
    assert first == "  0  1 part, 0 holes, 4 vertices, 1.0 square pixels, score 0.25 (predicted IoU)"
    assert second == "  1  1 part, 0 holes, 4 vertices, 12.0 square pixels, score 0.25 (predicted IoU)"


def test_a_box_that_fails_does_not_stop_the_others(target: str) -> None:
    boxes = ("--box", "0,0,1,1", "--box", "3,0,4,1", "--box", "0,0,2,2")
    result = segment(target, *boxes, "--json")
    assert result.exit_code == 1
    first, second, third = the_line(result)["objects"]
    assert (first["area"], third["area"]) == (1, 4)
    assert second == {"id": "", "prompt": [3, 0, 4, 1], "error": "the box is empty", "code": "INVALID_ARGUMENT"}
    assert result.stderr == "Error: photo.png: box 1: the box is empty\n"
    assert "  1  failed" in segment(target, *boxes).stdout.splitlines()


def test_options_are_sent(target: str, script: Script) -> None:
    options = ("--model", "m", "--version", "2", "--roi", "0,0,4,2", "--tolerance", "0", "--max-points", "9")
    assert segment(target, "--box", "1,1,2,2", "--threshold", "0.25", *options).exit_code == 0
    request = the_request(script)
    assert (request.model, request.version, request.roi) == ("m", 2, pb.Box(x0=0, y0=0, x1=4, y1=2))
    assert (request.output.threshold, request.output.tolerance, request.output.max_points) == (0.25, 0, 9)


def test_without_a_model_the_server_chooses(target: str, script: Script) -> None:
    assert segment(target, "--box", "1,1,2,2").exit_code == 0
    assert the_request(script).model == ""


def test_outlines_and_boxes_are_drawn(target: str) -> None:
    result = segment(target, "--box", "0,0,4,3", "--overlay", "out.png")
    assert result.exit_code == 0, result.stderr
    drawn = cv2.imread("out.png")
    assert drawn.shape == (3, 4, 3)
    assert (drawn != 90).any()


# Files of boxes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("boxes.csv", "x0,y0,x1,y1,id\n1,1,2,2,car\n0,0,4,3,\n"),
        ("boxes.csv", "label, id, y0, x0, y1, x1\nvan, car, 1, 1, 2, 2\n\nvan, , 0, 0, 3, 4\n"),
        ("boxes.txt", "\ufeffX0,Y0,X1,Y1,ID\r\n1,1,2,2,car\r\n0,0,4,3,\r\n"),
        ("boxes.json", '[{"box": [1, 1, 2, 2], "id": "car"}, [0, 0, 4, 3]]'),
        ("boxes.json", '{"detections": [{"box": [1, 1, 2, 2], "id": "car", "score": 0.5}, {"box": [0, 0, 4, 3]}]}'),
    ],
)
def test_boxes_come_from_files(target: str, script: Script, name: str, content: str) -> None:
    Path(name).write_text(content)
    answer = the_line(segment(target, "--boxes", name, "--json"))
    assert sent(script) == [("car", [1, 1, 2, 2]), ("", [0, 0, 4, 3])]
    assert [one["id"] for one in answer["objects"]] == ["car", ""]


def test_csv_needs_no_header(target: str, script: Script) -> None:
    Path("boxes.csv").write_text("1,1,2,2\n0,0,4,3\n")
    assert segment(target, "--boxes", "boxes.csv").exit_code == 0
    assert sent(script) == [("", [1, 1, 2, 2]), ("", [0, 0, 4, 3])]


def test_boxes_come_from_standard_input_and_after_those_of_the_command_line(target: str, script: Script) -> None:
    result = segment(target, "--box", "1,1,2,2", "--boxes", "-", stdin='[{"box": [0, 0, 4, 3], "id": 7}]')
    assert result.exit_code == 0, result.stderr
    assert sent(script) == [("", [1, 1, 2, 2]), ("7", [0, 0, 4, 3])]


def test_what_detect_prints_is_a_file_of_boxes(target: str, script: Script) -> None:
    found = CliRunner().invoke(main, ["--target", target, "detect", "photo.png", "--json"])
    line = json.loads(found.stdout)
    line["detections"] = [{"label": "cup", "model_label": "cup", "score": 0.9, "box": [1, 1, 2, 2]}]
    script.arrivals.clear()
    assert segment(target, "--boxes", "-", stdin=json.dumps(line)).exit_code == 0
    assert sent(script) == [("", [1, 1, 2, 2])]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "boxes.any is empty"),
        ("[]", "boxes.any has no boxes"),
        ("x0,y0,x1,y1\n", "boxes.any has no boxes"),
        ("[[1, 2, 3]]", "boxes.any: box 0 [1, 2, 3] is not 4 finite numbers"),
        ('[[0, 0, 1, 1], {"box": "all"}]', "boxes.any: box 1 'all' is not 4 finite numbers"),
        ("x0,y0,x1,y1\n1,1,2,2\n1,1,two,2\n", "boxes.any: box 1 ['1', '1', 'two', '2'] is not 4 finite numbers"),
        ("x0,y0,x1,y1\n1,1,2\n", "boxes.any: box 0 ['1', '1', '2', ''] is not 4 finite numbers"),
        ("x0,y0,x1,y1\n1,1,2,inf\n", "boxes.any: box 0 [1.0, 1.0, 2.0, inf] is not 4 finite numbers"),
        ('[{"box": [0, 0, 1, 1], "id": [1]}]', "boxes.any: box 0 [1] is not a text"),
        ('{"boxes": 1}', "boxes.any: it is not CSV with the columns x0, y0, x1, y1"),
        ("left,top,right,bottom\n1,1,2,2\n", "boxes.any: it is not CSV with the columns x0, y0, x1, y1"),
        ("[[1, 1, 2, 2]", "boxes.any is not valid JSON"),
    ],
)
def test_a_wrong_file_of_boxes_is_told_and_nothing_is_sent(
    target: str, script: Script, content: str, complaint: str
) -> None:
    Path("boxes.any").write_text(content)
    result = segment(target, "--boxes", "boxes.any")
    assert result.exit_code == 2
    assert "Invalid value for '--boxes': " in result.stderr
    assert complaint in result.stderr
    assert script.arrivals == []


def test_bytes_and_missing_files_are_no_boxes(target: str) -> None:
    assert "photo.png is neither CSV nor JSON" in segment(target, "--boxes", "photo.png").stderr
    assert "missing.csv cannot be read: No such file" in segment(target, "--boxes", "missing.csv").stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "No boxes: add --box or --boxes."),
        (["--box", "1,2,3"], "'--box': '1,2,3' is not 4 comma-separated numbers"),
        (["--box", "1,1,2,2", "--roi", "1"], "'--roi': '1' is not 4"),
        (["--box", "1,1,2,2", "--version", "2"], "--version is that of a model: add --model."),
    ],
)
def test_a_wrong_command_exits_with_2(target: str, script: Script, arguments: list[str], complaint: str) -> None:
    result = segment(target, *arguments)
    assert (result.exit_code, script.arrivals) == (2, [])
    assert complaint in result.stderr


def test_image_and_boxes_cannot_both_be_standard_input(target: str) -> None:
    result = CliRunner().invoke(main, ["--target", target, "segment", "-", "--boxes", "-"])
    assert result.exit_code == 2
    assert "Standard input is read once" in result.stderr


def test_an_image_that_cannot_be_read_is_one_failure(target: str) -> None:
    result = CliRunner().invoke(main, ["--target", target, "segment", "no.png", "--box", "1,1,2,2", "--json"])
    assert result.exit_code == 1
    assert the_line(result) == {
        "image": "no.png",
        "error": "no.png cannot be read: No such file or directory",
        "code": "INVALID_ARGUMENT",
    }

"""How good the polygons of detections are: which detection is which object, and the command on the real service."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from polywand import Box, Detection
from polywand_zoo.cli import main
from polywand_zoo.evaluation.boxes import overlap
from polywand_zoo.evaluation.detections import match
from tests.running import Service
from tests.zoo import coco_folder
from tests.zoo.evaluation import pictures

# About the astronaut, without the helmet beside her.
PERSON = [(205, 18), (260, 18), (298, 60), (295, 110), (265, 150), (265, 185), (300, 225), (340, 262), (362, 345)]
PERSON += [(300, 385), (283, 440), (283, 511), (30, 511), (20, 400), (40, 310), (75, 245), (118, 205), (125, 165)]
PERSON += [(185, 150), (160, 100), (157, 50)]
LEFT, RIGHT = Box(0, 0, 10, 10), Box(20, 0, 30, 10)


def detections(*found: tuple[str, Box]) -> Sequence[Detection]:
    """Best first."""
    return [Detection(label, label, 0.9 - number / 10, box) for number, (label, box) in enumerate(found)]


def test_boxes_overlap_by_their_areas():
    assert overlap(LEFT, LEFT) == 1
    assert overlap(LEFT, RIGHT) == 0
    assert overlap(LEFT, Box(5, 0, 15, 10)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("cat", LEFT), ("cat", RIGHT)], [0, 1]),
        ([("cat", RIGHT), ("cat", LEFT)], [1, 0]),
        ([("dog", LEFT)], [-1]),  # of another label
        ([("cat", Box(0, 0, 10, 4))], [-1]),  # of another size
        ([("cat", LEFT), ("cat", LEFT)], [0, -1]),  # found already
    ],
)
def test_each_object_is_found_once_by_its_label_and_box(found: list[tuple[str, Box]], expected: list[int]):
    assert match(detections(*found), ["cat", "cat"], [LEFT, RIGHT], 0.5) == expected


def test_the_command_tells_how_much_better_outlines_are_than_boxes(server: Service, tmp_path: Path):
    pixels, _ = pictures.astronaut()
    person = pictures.polygon((512, 512), PERSON)
    entries = [
        {"image_id": 1, "category_id": number, "segmentation": coco_folder.compressed(mask.astype(np.uint8))}
        for number, mask in ((1, person), (2, np.roll(person, 40, axis=1)))
    ]
    folder = coco_folder.write(tmp_path / "data", {"astronaut.png": pixels}, entries)
    content = json.loads((folder / "annotations.json").read_text())
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 2, "name": "no class of nanodet"}]
    (folder / "annotations.json").write_text(json.dumps(content))
    out = tmp_path / "matches.json"
    arguments = ["wand_click", "grabcut", "--coco", str(folder / "annotations.json"), "--service", server.target]
    result = CliRunner().invoke(main, ["evaluate-detections", *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    wand, grabcut = json.loads(out.read_text())
    assert (wand["asked"]["interactor"], grabcut["asked"]["interactor"]) == ("wand_click", "grabcut")
    assert wand["objects"] == 1
    (found,) = wand["matches"]
    assert found["label"] == "person"
    assert found["outline_iou"] > 0.8
    assert found["outline_iou"] > found["filled_box_iou"] + 0.1
    row = next(line for line in result.stdout.splitlines() if "wand_click" in line)
    assert f"{found['outline_iou']:.3f}" in row


def test_an_interactor_that_is_not_there_is_told(server: Service, tmp_path: Path):
    folder = coco_folder.write(tmp_path / "data", {"astronaut.png": pictures.astronaut()[0]}, [])
    content = json.loads((folder / "annotations.json").read_text())
    square = [[10, 10, 400, 10, 400, 400, 10, 400]]
    content["categories"] = [{"id": 1, "name": "person"}]
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": square}]
    (folder / "annotations.json").write_text(json.dumps(content))
    arguments = ["no_such", "--coco", str(folder / "annotations.json"), "--service", server.target]
    result = CliRunner().invoke(main, ["evaluate-detections", *arguments])
    assert result.exit_code == 1
    assert "there is no model 'no_such'" in result.output

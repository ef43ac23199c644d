"""The keys of every line of JSON are those of the table in docs/client.md."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from polywand.cli import main
from tests.running import Service

DOCS = Path(__file__).parent.parent.parent / "docs" / "client.md"
ROWS = dict(re.findall(r"^\| ([a-z`' ]+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE))


def keys(name: str) -> set[str]:
    """Return the documented keys of an object."""
    row = ROWS[name]
    inherited = re.findall(r"those of an? ([a-z]+)", row)
    return set(re.findall(r"`(\w+)`", row)).union(*map(keys, inherited))


OPTIONAL = keys("failure") - {"image", "error", "code"}


def check(name: str, value: Collection[str], optional: Collection[str] = ()) -> None:
    """Check that an object has its documented keys, of which the optional ones may be absent."""
    assert set(value) <= keys(name), name
    assert keys(name) - set(value) <= set(optional), name


def check_outline(name: str, value: Mapping[str, Any]) -> None:
    check(name, value)
    assert value["polygons"]
    for polygon in value["polygons"]:
        check("polygon", polygon)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", np.full((256, 256, 3), 90, np.uint8))
    return "photo.png"


def line(service: Service, *arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["--target", service.target, *arguments, "--json"])
    assert result.exit_code == code, result.stderr
    (printed,) = result.stdout.splitlines()
    return json.loads(printed)


def test_a_line_of_detect(puppets: Service, photo: str) -> None:
    answer = line(puppets, "detect", photo, "--model=finder", "--polygons", "--interactor=upper_half")
    check("line of `detect`", answer)
    check("timing", answer["timing"])
    assert answer["detections"]
    for detection in answer["detections"]:
        check("detection", detection)
        check_outline("outline", detection["outline"])
    for detection in line(puppets, "detect", photo, "--model=finder")["detections"]:
        check("detection", detection, {"outline"})
        assert "outline" not in detection


def test_a_line_of_interact(puppets: Service, photo: str) -> None:
    answer = line(puppets, "interact", photo, "--model=leaning", "--positive=20,20")
    check_outline("line of `interact`", answer)
    check("timing", answer["timing"])


def test_a_line_of_segment(puppets: Service, photo: str) -> None:
    boxes = ("--box=64,64,192,192", "--box=64,64,999,192")
    answer = line(puppets, "segment", photo, "--model=upper_half", *boxes, code=1)
    check("line of `segment`", answer)
    check("timing", answer["timing"])
    outlined, failed = answer["objects"]
    check_outline("object", outlined)
    check("failure", failed.keys() - {"id", "prompt"}, {"image"} | OPTIONAL)
    assert (outlined["prompt"], failed["code"]) == ([64, 64, 192, 192], "INVALID_ARGUMENT")


def test_a_line_of_models(puppets: Service) -> None:
    answer = line(puppets, "models")
    check("line of `models`", answer)
    for model in answer["models"]:
        check("model", model)
        for version in model["versions"]:
            check("model's version", version)
        for label in model["labels"]:
            check("label", label)
        if model["interactor"] is not None:
            check("interactor", model["interactor"])
    assert any(model["labels"] for model in answer["models"])
    assert any(model["interactor"] for model in answer["models"])


def test_a_line_of_info(puppets: Service) -> None:
    answer = line(puppets, "info")
    check("line of `info`", answer)
    check("limits", answer["limits"])
    assert answer["state"] == "ready"


def test_a_line_of_a_failure(puppets: Service, photo: str) -> None:
    refused = line(puppets, "interact", photo, "--model=leaning", "--positive=999,20", code=1)
    check("failure", refused, OPTIONAL)
    check("violation", refused["violations"][0])
    lacking = line(puppets, "interact", photo, "--model=box_and_point", code=1)
    check("failure", lacking, OPTIONAL)
    assert lacking["missing_box"] is True
    check("failure", line(puppets, "detect", "missing.png", code=1), OPTIONAL)

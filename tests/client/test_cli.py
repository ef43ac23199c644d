"""The `polywand` command on the real service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import polywand
from polywand import overlay
from polywand.cli import main
from polywand.cli.params import InClickOrder, Numbers, clicks_as_typed
from tests.client.scripted import Script, scripted_server
from tests.running import WAND_VERSION, Service

POLYWAND = Path(sys.executable).parent / "polywand"
RGB: TypeAlias = NDArray[np.uint8]
Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
FACE = "225,110"


def run_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POLYWAND_")}
    command = [str(POLYWAND), *map(str, arguments)]
    result = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in result.stderr
    return result


def run_polywand(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which takes a tenth of the time."""
    unset = {name: None for name in os.environ if name.startswith("POLYWAND_")}
    result = CliRunner().invoke(main, [*map(str, arguments)], env=unset | environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def run(server: Service) -> Run:
    def run_there(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_polywand(*arguments, POLYWAND_TARGET=server.target, **environment)

    return run_there


@pytest.fixture
def photos(tmp_path: Path, astronaut: RGB, coffee: RGB) -> tuple[Path, Path]:
    paths = tmp_path / "astronaut.png", tmp_path / "coffee.png"
    for path, pixels in zip(paths, (astronaut, coffee), strict=True):
        cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return paths


def read_rgb(path: Path) -> RGB:
    pixels: RGB = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return pixels


def the_json(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# What needs no server


def test_the_version_is_the_packages() -> None:
    assert run_process("--version").stdout == f"polywand {version('polywand')}\n"


def test_help_names_every_command_and_the_default_target() -> None:
    text = run_polywand("--help").stdout
    assert all(word in text for word in ("models", "interact", "detect", "localhost:50051", "POLYWAND_TARGET"))


def test_no_server_is_told_in_one_line_with_exit_code_1() -> None:
    result = run_process("--target", "localhost:1", "models")
    assert result.returncode == 1
    assert result.stderr == "Error: No Polywand server answers at localhost:1. Is it running? (make serve)\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["interact", "x.png", "--model", "m", "--positive", "5"], "'5' is not 2 comma-separated numbers"),
        (["interact", "x.png", "--model", "m", "--box", "1,2,3"], "'1,2,3' is not 4 comma-separated"),
        (["interact", "x.png", "--version", "2"], "add --model"),
        (["detect", "x.png", "--version", "2"], "add --model"),
        (["interact", "x.png", "--model", "m", "--overlay", "out.mp3"], "out.mp3"),
        (["detect"], "Missing argument"),
        (["detect", "x.png", "--label", "=car"], "does not name a label"),
        (["detect", "a/x.png", "b/x.png", "--overlay", "out"], "same name"),
        (["detect", "a/x.png", "a/y.png", "--overlay", "a"], "would overwrite the input 'a/x.png'"),
        (["detect", "x.png", "--interactor", "grabcut"], "add --polygons"),
        (["detect", "x.png", "--tolerance", "0"], "add --polygons"),
        (["outline"], "No such command 'outline'"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], complaint: str) -> None:
    result = run_polywand(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr


# models


def test_models_are_a_table(run: Run) -> None:
    result = run("models")
    assert result.returncode == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["NAME", "KIND", "VERSIONS", "NEEDS", "LICENCE", "STATE"]
    row = next(row for row in rows if row.startswith("wand_click"))
    assert all(part in row for part in ("interactor", "1 positive point or a box", "Apache-2.0", "ready"))
    assert any(row.startswith("nanodet") and "80 labels" in row for row in rows)
    assert any(row.startswith("grabcut") and "a box" in row for row in rows)


def test_models_as_json(run: Run) -> None:
    models = {model["name"]: model for model in the_json(run("models", "--json"))["models"]}
    assert models["wand_click"]["interactor"]["min_positive_points"] == 1
    assert models["nanodet"]["labels"][0]["name"] == "person"
    assert models["nanodet"]["default_threshold"] == 0.4


# interact


def test_a_click_prints_what_was_found(server: Service, photos: tuple[Path, Path]) -> None:
    arguments = ("interact", photos[0], "--model", "wand_click", "--positive", FACE)
    result = run_process(*arguments, POLYWAND_TARGET=server.target)
    assert result.returncode == 0, result.stderr
    for word in ("part", "vert", "square pixels", "box", "wand_click version", "threshold 0.5", "ms (", "at Triton"):
        assert word in result.stdout


def test_a_click_as_json_is_what_the_sdk_says(
    run: Run, photos: tuple[Path, Path], server: Service, astronaut: RGB
) -> None:
    arguments = ("--positive", FACE, "--negative", "30,30", "--tolerance", "0", "--threshold", "0.4")
    answer = the_json(run("interact", photos[0], "--model", "wand_click", "--json", *arguments))
    with polywand.connect(server.target) as client, client.open(astronaut) as session:
        points = [polywand.Point(225, 110), polywand.Point(30, 30, "negative")]
        session.prompt("wand_click", points=points[:1])
        outline = session.prompt("wand_click", points=points, tolerance=0, threshold=0.4)
    assert answer["image"] == str(photos[0])
    assert (answer["width"], answer["height"]) == (512, 512)
    assert (answer["model"], answer["threshold"], answer["area"]) == ("wand_click", 0.4, outline.area)
    printed = [np.array(polygon["exterior"], np.float32) for polygon in answer["polygons"]]
    for ours, theirs in zip(printed, outline.polygons, strict=True):
        np.testing.assert_array_equal(ours, theirs.exterior)
    assert answer["timing"]["total_us"] > 0
    assert answer["iou"] == outline.iou


def test_a_coarse_outline_says_how_much_of_the_mask_it_kept(run: Run, photos: tuple[Path, Path]) -> None:
    result = run("interact", photos[0], "--model", "wand_click", "--positive", FACE, "--max-points", "12")
    assert result.returncode == 0, result.stderr
    kept = re.search(r"tolerance [\d.]+ pixels, IoU (0\.\d{3}) with the mask", result.stdout)
    assert kept is not None, result.stdout
    assert 0.5 < float(kept[1]) < 1


def test_options_may_come_from_the_environment(run: Run, photos: tuple[Path, Path]) -> None:
    from_options = the_json(run("interact", photos[0], "--json", "--model", "wand_click", "--positive", FACE))
    environment = {"POLYWAND_INTERACT_MODEL": "wand_click", "POLYWAND_INTERACT_POSITIVE": FACE}
    assert the_json(run("interact", photos[0], "--json", **environment))["polygons"] == from_options["polygons"]


def test_points_count_in_the_order_in_which_they_are_typed() -> None:
    @click.command(cls=InClickOrder)
    @click.option("--positive", type=Numbers("x,y"), multiple=True)
    @click.option("--negative", type=Numbers("x,y"), multiple=True)
    @click.option("--extreme", type=Numbers("x,y"), multiple=True)
    @click.pass_context
    def show(ctx: click.Context, /, **points: tuple[tuple[float, ...], ...]) -> None:
        click.echo(json.dumps(clicks_as_typed(ctx, **points)))

    typed = ["--negative", "1,1", "--positive=2,2", "--negative", "3,3", "--extreme", "4,4", "--positive", "-5,5"]
    assert json.loads(CliRunner().invoke(show, typed, catch_exceptions=False).stdout) == [
        *([1, 1, "negative"], [2, 2, "positive"], [3, 3, "negative"]),
        *([4, 4, "extreme"], [-5, 5, "positive"]),
    ]


def test_too_little_is_told_in_a_sentence(run: Run, photos: tuple[Path, Path]) -> None:
    result = run("interact", photos[0], "--model", "wand_click")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The tool needs ")
    assert "positive point" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("image", "model", "point", "complaint"),
    [
        ("astronaut.png", "no_such_tool", FACE, "no_such_tool"),
        ("astronaut.png", "nanodet", FACE, "nanodet"),
        ("astronaut.png", "wand_click", "9999,5", "outside"),
        ("missing.png", "wand_click", FACE, "missing.png cannot be read: No such file"),
        ("notes.txt", "wand_click", FACE, "not an image"),
    ],
)
def test_errors_are_one_sentence_with_exit_code_1(
    run: Run, photos: tuple[Path, Path], image: str, model: str, point: str, complaint: str
) -> None:
    (photos[0].parent / "notes.txt").write_text("these are notes")
    result = run("interact", photos[0].parent / image, "--model", model, "--positive", point)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_overlay_of_clicks_shows_outline_inside_and_points(
    run: Run, photos: tuple[Path, Path], astronaut: RGB, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    answer = the_json(
        run(
            *("interact", photos[0], "--model", "wand_click", "--json", "--overlay", out, "--tolerance", "0"),
            *("--positive", FACE, "--negative", "30,30"),
        )
    )
    picture = read_rgb(out)
    assert picture.shape == astronaut.shape
    assert picture[110, 225].tolist() == list(overlay.CLICKS["positive"])
    assert picture[30, 30].tolist() == list(overlay.CLICKS["negative"])
    polygons = [
        polywand.Polygon(
            np.array(polygon["exterior"], np.float32),
            tuple(np.array(hole, np.float32) for hole in polygon["holes"]),
        )
        for polygon in answer["polygons"]
    ]
    inside = polywand.rasterise(polygons, 512, 512)
    changed = (picture != astronaut).any(axis=2)
    assert changed[inside].mean() > 0.98
    around = cv2.dilate(inside.astype(np.uint8), np.ones((15, 15)))
    around[20:41, 20:41] = 1
    assert changed[around == 0].mean() < 0.001


def test_an_overlay_of_a_box_shows_it(run: Run, photos: tuple[Path, Path], coffee: RGB, tmp_path: Path) -> None:
    out = tmp_path / "out.jpg"
    result = run("interact", photos[1], "--model", "grabcut", "--box", "120,40,480,340", "--overlay", out)
    assert result.returncode == 0, result.stderr
    edge = read_rgb(out)[100:300, 119:121].astype(int)
    assert edge.mean() > coffee[100:300, 119:121].astype(int).mean() + 20


# segment


def test_boxes_are_outlined_as_by_the_sdk(
    run: Run, photos: tuple[Path, Path], server: Service, astronaut: RGB, tmp_path: Path
) -> None:
    boxes = [(17.0, 16.0, 362.0, 511.0), (275.0, 347.0, 500.0, 511.0)]
    given = tmp_path / "boxes.csv"
    given.write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))
    answer = the_json(run("segment", photos[0], "--boxes", given, "--model", "wand_box", "--json"))
    with polywand.connect(server.target) as client:
        outlines = [result.unwrap() for result in client.segment(astronaut, boxes, model="wand_box")]
    assert (answer["width"], answer["height"]) == (512, 512)
    assert [one["prompt"] for one in answer["objects"]] == [list(box) for box in boxes]
    assert [one["area"] for one in answer["objects"]] == [outline.area for outline in outlines]
    assert all(one["area"] > 1000 for one in answer["objects"])


# info


def test_info_says_what_the_server_is(run: Run, server: Service) -> None:
    result = run("info")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{server.target}: Polywand {version('polywand')}, ready\n")
    assert "30,000,000 pixels" in result.stdout
    assert the_json(run("info", "--json"))["limits"]["image_pixels"] == 30_000_000


# The connection


def test_token_and_metadata_are_sent_and_refused_in_words(photos: tuple[Path, Path]) -> None:
    arguments = ("--token", "secret", "--metadata", "x-project=cars", "--metadata", "x-user=me")
    with scripted_server(script := Script()) as target:
        assert run_polywand("--target", target, *arguments, "models").returncode == 0
        sent = script.metadata
        environment = {"POLYWAND_TOKEN": "other", "POLYWAND_METADATA": "x-project=vans; x-user=you"}
        assert run_polywand("--target", target, "detect", photos[0], **environment).returncode == 0
    assert (sent["authorization"], sent["x-project"], sent["x-user"]) == ("Bearer secret", "cars", "me")
    refused = run_polywand("--target", "example.org:1", "--token", "secret", "models")
    assert refused.returncode == 2
    assert "'--token': Without TLS, anyone on the way can read it: add --tls, or --insecure-token" in refused.stderr
    for wrong in (("--metadata", "x"), ("--metadata", "=x"), ("--metadata", "X y=1"), ("--token", "a b")):
        result = run_polywand(*wrong, "models")
        assert result.returncode == 2
        assert f"'{wrong[0]}'" in result.stderr


# detect


def test_detections_are_printed_best_first(run: Run, photos: tuple[Path, Path]) -> None:
    result = run("detect", photos[0])
    assert result.returncode == 0, result.stderr
    header, first = result.stdout.splitlines()[:2]
    assert "astronaut.png" in header
    assert "nanodet version" in header
    assert "person" in first


def test_several_images_are_one_json_object_a_line(run: Run, photos: tuple[Path, Path]) -> None:
    result = run("detect", *photos, "--json", "--threshold", "0.1", "--label", "person=human", "--label", "cup")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(photo) for photo in photos]
    assert [(line["width"], line["height"]) for line in lines] == [(512, 512), (600, 400)]
    assert lines[0]["detections"][0]["label"] == "human"
    assert {one["label"] for line in lines for one in line["detections"]} <= {"human", "cup"}


def test_polygons_are_told_and_drawn(
    run: Run, photos: tuple[Path, Path], server: Service, astronaut: RGB, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    arguments = ("--polygons", "--interactor", "wand_click", "--tolerance", "0", "--max-detections", "1")
    text = run("detect", photos[0], *arguments, "--overlay", out)
    assert text.returncode == 0, text.stderr
    header, first = text.stdout.splitlines()
    assert f"by nanodet version 1 and wand_click version {WAND_VERSION}" in header
    assert re.search(r"person  [-\d., ]+  \d+ parts?, \d+ holes?, \d+ vertices, [\d.]+ square pixels$", first), first
    with polywand.connect(server.target) as client:
        (best,) = client.detect(astronaut, polygons=True, interactor="wand_click", tolerance=0, max_detections=1)
    (printed,) = the_json(run("detect", photos[0], *arguments, "--json"))["detections"]
    assert best.outline is not None
    assert printed["outline"]["area"] == best.outline.area
    assert (printed["outline"]["model"], printed["outline"]["version"]) == ("wand_click", WAND_VERSION)
    for ours, theirs in zip(printed["outline"]["polygons"], best.polygons, strict=True):
        np.testing.assert_array_equal(np.array(ours["exterior"], np.float32), theirs.exterior)
    inside = polywand.rasterise(best.polygons, 512, 512)
    tagged = np.zeros_like(inside)
    tagged[:44, :200] = True  # the label, which goes before all
    changed = (read_rgb(out) != astronaut).any(axis=2)
    assert changed[inside & ~tagged].mean() > 0.98
    far = ~cv2.dilate(inside.astype(np.uint8), np.ones((15, 15))).astype(bool) & ~tagged
    assert changed[far].mean() < 0.001


def test_detections_without_polygons_have_no_outline_in_json(run: Run, photos: tuple[Path, Path]) -> None:
    assert "outline" not in the_json(run("detect", photos[0], "--json"))["detections"][0]


def test_max_detections_limits_each_image(run: Run, photos: tuple[Path, Path]) -> None:
    answer = the_json(run("detect", photos[1], "--json", "--threshold", "0.05", "--max-detections", "2"))
    assert len(answer["detections"]) == 2


def test_a_bad_image_does_not_stop_the_others(run: Run, photos: tuple[Path, Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("these are notes")
    missing = tmp_path / "missing.png"
    result = run("detect", photos[0], notes, missing, photos[1], "--json")
    assert result.returncode == 1
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(path) for path in (photos[0], notes, missing, photos[1])]
    assert [answer.get("code") for answer in answers] == [None, "INVALID_ARGUMENT", "INVALID_ARGUMENT", None]
    assert answers[2]["error"] == f"{missing} cannot be read: No such file or directory"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"Error: {notes}: ")
    assert second == f"Error: {missing} cannot be read: No such file or directory"


def test_overlays_of_several_images_go_into_a_directory(
    run: Run, photos: tuple[Path, Path], astronaut: RGB, tmp_path: Path
) -> None:
    out = tmp_path / "drawn" / "here"
    answers = run("detect", *photos, "--json", "--overlay", out)
    assert answers.returncode == 0, answers.stderr
    assert sorted(path.name for path in out.iterdir()) == ["astronaut.png", "coffee.png"]
    picture = read_rgb(out / "astronaut.png")
    best = json.loads(answers.stdout.splitlines()[0])["detections"][0]
    _, y0, x1, y1 = best["box"]
    changed = (picture != astronaut).any(axis=2)
    middle = round((y0 + y1) / 2)
    assert changed[middle - 20 : middle + 20, round(x1) - 3 : round(x1) + 3].any(axis=1).all()
    assert changed.mean() < 0.2


def test_an_overlay_that_cannot_be_written_is_told(run: Run, photos: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("detect", photos[0], "--overlay", tmp_path / "no" / "such" / "directory" / "out.png")
    assert result.returncode == 1
    assert "out.png" in result.stderr


def test_a_range_of_values_is_for_the_answer_and_the_drawing(run: Run, tmp_path: Path, astronaut: RGB) -> None:
    photo, drawing = tmp_path / "mist.png", tmp_path / "drawing.png"
    cv2.imwrite(str(photo), astronaut[..., ::-1].astype(np.uint16) * 16 + 20_000)
    found = the_json(run("detect", photo, "--json", "--range", "20000,24080", "--overlay", drawing))
    assert found["detections"][0]["label"] == "person"
    drawn = read_rgb(drawing)
    assert np.abs(drawn[-40:, -40:].astype(int) - astronaut[-40:, -40:]).mean() < 20
    result = run("interact", photo, "--model", "wand_click", "--positive", FACE, "--range", "9,9")
    assert result.returncode == 2
    assert "'--range': '9,9': the first number must be below the second." in result.stderr
